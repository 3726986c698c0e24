from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossroads.adapters.calls import calling
from crossroads.adapters.generating import generate
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.serving.openable import gives_way, openable
from tests.adapters.saved import bank, base_model
from tests.adapters.toys import ids, tiny_llama

PROMPT = ids(1, 6)


def _logits(spec: str, *, opened: bool, expert: str | None = None) -> Tensor:
    model, made = tiny_llama(), bank()
    router = build_router(spec)
    RoutedModel(model, made, openable(router, made) if opened else router)
    with torch.no_grad(), calling(experts=None if expert is None else [expert]):
        found: Tensor = model(PROMPT).logits
    return found


@pytest.mark.parametrize("spec", ["phatgoose", "arrow", "uniform", "task-arithmetic"])
def test_a_router_decides_as_it_would_alone_until_an_expert_is_named(spec: str) -> None:
    assert torch.equal(_logits(spec, opened=True), _logits(spec, opened=False))
    own = _logits("named", opened=False, expert="words")
    torch.testing.assert_close(_logits(spec, opened=True, expert="words"), own)
    assert not torch.allclose(own, _logits(spec, opened=True), atol=1e-4)


@pytest.mark.parametrize(("spec", "does"), [("ties", False), ("named", False), ("arrow", True)])
def test_routers_without_weights_do_not_give_way(spec: str, does: bool) -> None:
    made = bank()
    router = build_router(spec)
    router.prepare(made)
    assert gives_way(router, made) is does
    assert (openable(router, made) is router) is not does


@pytest.mark.parametrize(("spec", "reads"), [("phatgoose", [3, 1, 1, 1]), ("x-lora", [3, 4, 5, 6])])
def test_an_answer_is_written_with_a_cache_unless_the_router_looks_ahead(
    spec: str, reads: list[int]
) -> None:
    base, made = base_model(), bank()
    router = openable(build_router(spec), made)
    routed = RoutedModel(base.model, made, router)
    seen: list[int] = []
    with routed.watched(lambda one: seen.append(one.read[1] if one.read else 0)):
        list(generate(base, router, [5, 6, 7], most=4, ends=frozenset()))
    assert seen == reads
