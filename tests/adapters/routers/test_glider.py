"""GLIDER: between PHATGOOSE at lambda 0 and the nearest task at large lambda."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Call, RouteInput
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.glider import Glider, calibrated_tau
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.core.errors import InputError, UsageError
from tests.adapters import toys

AXES = torch.eye(4)


def experts(n: int = 4) -> list[Expert]:
    """Experts of tasks at right angles."""
    found = toys.strangers(toys.tiny_llama(), n, kinds=("gate",))
    return [
        replace(e, embedding_G=axis, examples_JG=axis[None])
        for e, axis in zip(found, AXES, strict=False)
    ]


def unit(seed: int, rows: int = 3) -> Tensor:
    found = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=-1)


def routed(router: Phatgoose, query_BG: Tensor | None = None) -> tuple[Tensor, RoutedModel]:
    """Logits of three sequences, and the routed model."""
    model = toys.tiny_llama()
    found = RoutedModel(model, AdapterBank(experts()), router)
    with torch.no_grad(), calling(embedding=query_BG):
        return model(toys.ids()).logits, found


def test_lambda_0_is_phatgoose_bit_for_bit() -> None:
    for k in (1, 2, 4):
        ours, _ = routed(Glider(weight=0.0, k=k), unit(0))
        theirs, _ = routed(Phatgoose(k=k))
        assert torch.equal(ours, theirs)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_a_large_lambda_sends_all_tokens_at_all_layers_to_the_nearest_task(seed: int) -> None:
    query_BG = unit(seed)
    _, model = routed(Glider(weight=1e5, k=1), query_BG)
    nearest_B = (query_BG @ AXES.T).argmax(-1)
    for routing in model.last_routings.values():
        assert torch.equal(routing.index[..., 0, 0], nearest_B[:, None].expand(3, 7))


@given(seed=st.integers(0, 10_000), shift=st.floats(-3, 3), k=st.integers(1, 4))
@settings(max_examples=20)
def test_the_same_amount_for_all_experts_changes_nothing(seed: int, shift: float, k: int) -> None:
    class Shifted(Glider):
        def affinities(self, query_BG: Tensor) -> Tensor:
            return super().affinities(query_BG) + shift

    bank = AdapterBank(experts())
    layer = next(iter(bank.layers.values()))
    x_BTI = torch.randn(3, 5, layer.inputs, generator=torch.Generator().manual_seed(seed))
    call = Call(embedding_BG=unit(seed))
    told = RouteInput(module=layer.name, x_BTI=x_BTI, bank=layer, call=call)
    found = []
    for router in (Glider(weight=3.0, k=k), Shifted(weight=3.0, k=k)):
        router.prepare(bank)
        found.append(router.route(told).dense(4))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


def test_lambda_is_large_for_tasks_that_are_known_and_small_for_others() -> None:
    router = Glider()
    router.prepare(AdapterBank(experts()))
    assert router.threshold == pytest.approx(0.5)  # own cosine 1, nearest other 0
    far = torch.full((1, 4), 0.5)  # as near to all: cosine 1/2
    gamma_BE = router.affinities(torch.cat([AXES[:1], far]))
    assert router.weights_B(gamma_BE).tolist() == [100.0, 3.0]


def test_the_threshold_lies_between_own_and_other_examples() -> None:
    embeddings = AXES[:2]
    examples = [torch.tensor([[0.8, 0.6, 0, 0], [0.6, 0.8, 0, 0]]), AXES[1:2]]
    # own: mean of (0.8 + 0.6) / 2 and 1; nearest other: mean of (0.6 + 0.8) / 2 and 0
    assert calibrated_tau(embeddings, examples) == pytest.approx((0.85 + 0.35) / 2)
    with pytest.raises(InputError, match="give tau"):
        calibrated_tau(AXES[:1], [AXES[:1]])


def test_without_examples_the_paper_s_threshold_is_used_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bank = AdapterBank(replace(e, examples_JG=None) for e in experts())
    router = Glider()
    with caplog.at_level(logging.WARNING):
        router.prepare(bank)
    assert router.threshold == 0.8
    assert "give tau, or examples" in caplog.text
    fixed = build_router("glider:tau=0.3")
    fixed.prepare(bank)
    assert isinstance(fixed, Glider)
    assert fixed.threshold == 0.3


@given(seed=st.integers(0, 10_000), p=st.floats(0.05, 0.95))
@settings(max_examples=20)
def test_top_p_keeps_the_smallest_prefix_above_p(seed: int, p: float) -> None:
    bank = AdapterBank(experts())
    layer = next(iter(bank.layers.values()))
    router = Glider(weight=2.0, p=p)
    router.prepare(bank)
    x_BTI = torch.randn(2, 5, layer.inputs, generator=torch.Generator().manual_seed(seed))
    call = Call(embedding_BG=unit(seed, 2))
    found = router.route(RouteInput(module=layer.name, x_BTI=x_BTI, bank=layer, call=call))
    found.check(layer)
    probs = torch.softmax(found.logits, -1)  # type: ignore[arg-type]
    kept = found.weights > 0
    mass = (probs * kept).sum(-1)
    assert bool((mass > p - 1e-6).all())
    least = torch.where(kept, probs, torch.inf).amin(-1)
    assert bool((mass - least <= p + 1e-6).all())  # one fewer would not do


def test_experts_that_come_and_go_are_followed() -> None:
    model = toys.tiny_llama()
    bank = AdapterBank(experts(3))
    RoutedModel(model, bank, Glider())
    with calling(embedding=unit(0)):
        before = model(toys.ids()).logits
        bank.add(experts(4)[3])
        changed = model(toys.ids()).logits
        bank.remove("e3")
        assert torch.equal(model(toys.ids()).logits, before)
    assert not torch.equal(changed, before)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="'e0' has no embedding"):
        Glider().prepare(AdapterBank(toys.strangers(toys.tiny_llama(), 2, kinds=("gate",))))
    with pytest.raises(InputError, match="needs 'embedding'"):
        routed(Glider())
    with pytest.raises(InputError, match="same encoder"):
        routed(Glider(), torch.ones(3, 7))


def test_the_router_is_built_again_from_its_settings() -> None:
    router = build_router("glider:weight=5:k=3:p=0.5")
    assert build_router("glider", **router.settings()).settings() == router.settings()
    assert router.settings()["weight"] == 5


@pytest.mark.parametrize(
    ("setting", "value"),
    [("p", 2.0), ("p", -1.0), ("p", math.nan), ("high", math.nan), ("low", math.inf),
     ("tau", math.nan), ("weight", "much")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(setting: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"router glider: {setting}: expected "):
        Glider(**{setting: value})  # type: ignore[arg-type]
