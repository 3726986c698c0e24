"""The example of "Write your own router" runs, is short, and has the trunk's guarantees."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from crossroads.core.routed import RouteContext
from crossroads.moe.beds import get_bed
from crossroads.moe.contract import Router
from crossroads.moe.experts import FFNBank
from crossroads.moe.layer import MoELayer
from crossroads.moe.tasks import MoETask

PAGE = Path(__file__).parents[2] / "docs" / "moe" / "own-router.md"


@pytest.fixture
def margin() -> Any:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) < 40
    names: dict[str, Any] = {}
    exec(compile(code[1], str(PAGE), "exec"), names)
    return names["Margin"]


def test_second_expert_only_where_it_is_nearly_as_good(margin: Any) -> None:
    torch.manual_seed(0)
    router = margin(8, 4, share=0.7)
    layer = MoELayer(router, FFNBank(8, 12, router.kinds))
    x_BTD = torch.randn(2, 50, 8)
    answer = layer(x_BTD, RouteContext(training=True))
    choice, probs_NE = answer.decisions[0].choice, answer.decisions[0].probs_NE
    ordered = probs_NE.sort(-1, descending=True).values
    near_N = ordered[:, 1] >= 0.7 * ordered[:, 0]
    assert torch.equal(choice.idx_NK[:, 1] >= 0, near_N)
    assert 0 < int(near_N.sum()) < 100
    layer.path = "dense"
    torch.testing.assert_close(layer(x_BTD).delta, answer.delta, atol=1e-5, rtol=1e-5)


def test_settings_of_the_base_can_be_given_to_the_example(margin: Any) -> None:
    torch.manual_seed(0)
    one = margin(8, 1, k=1)  # as the property tests build every router that has a k
    assert one.k == 1
    three = margin(8, 4, k=3, share=0.0)
    answer = MoELayer(three, FFNBank(8, 12, three.kinds))(torch.randn(1, 6, 8))
    assert (answer.decisions[0].choice.idx_NK >= 0).sum(-1).tolist() == [3] * 6


def test_it_runs_in_the_arena_by_name(margin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import crossroads.moe.routers as registry

    class Entry:
        def load(self) -> type[Router]:
            found: type[Router] = margin
            return found

    monkeypatch.setattr(registry.REGISTRY, "_others", {"margin": Entry()})
    bed = get_bed("vision")
    task = MoETask(bed=bed, config=replace(bed.config("quick"), steps=1, batch_size=4))
    monkeypatch.setattr(MoETask, "identify", lambda self, router: router)
    cell = task.run("margin:share=0.5", 0)
    assert 1 < cell.metrics["active_experts"] < 2
    registry.REGISTRY.forget()


def test_a_router_that_is_not_installed_goes_by_where_it_is_imported_from() -> None:
    from crossroads.moe.claims.yuan_attention_router import TwoLayerGate
    from crossroads.moe.routers import build_router

    made = build_router(f"{TwoLayerGate.__module__}.TwoLayerGate:k=2", 8, 4)
    assert type(made) is TwoLayerGate
    assert made.k == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("crossroads.moe.no_such.Router", "cannot be imported: No module"),
        ("crossroads.moe.router.NoSuch", "cannot be imported: module"),
        ("crossroads.moe.experts.FFNBank", "not a subclass of Router"),
    ],
)
def test_what_cannot_be_imported_as_a_router_is_refused(path: str, message: str) -> None:
    from crossroads.core.errors import UsageError
    from crossroads.moe.routers import build_router

    with pytest.raises(UsageError, match=message):
        build_router(path, 8, 4)
