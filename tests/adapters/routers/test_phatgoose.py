"""PHATGOOSE: invariances of its scores, experts that come and go, gates trained alone."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert, LoRA, ModuleBank
from crossroads.adapters.contract import Call, RouteInput
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.core.errors import InputError
from tests.adapters import toys

LAYER = "layer"
WIDTH = 16


def bank_of(gates_EI: Tensor) -> AdapterBank:
    lora = LoRA(a_RI=torch.ones(1, gates_EI.shape[1]), b_OR=torch.ones(3, 1), scale=1.0)
    return AdapterBank(
        Expert(name=f"e{n}", modules={LAYER: lora}, artifacts={"gate": {LAYER: gate_I}})
        for n, gate_I in enumerate(gates_EI)
    )


def input_of(bank: AdapterBank, x_BTI: Tensor) -> RouteInput:
    return RouteInput(module=LAYER, x_BTI=x_BTI, bank=bank.layers[LAYER], call=Call())


def weights_of(router: Phatgoose, gates_EI: Tensor, x_BTI: Tensor) -> Tensor:
    bank = bank_of(gates_EI)
    router.prepare(bank)
    return router.route(input_of(bank, x_BTI)).dense(len(gates_EI))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    seed=st.integers(0, 10_000),
    stretch=st.floats(0.5, 20.0),
    shift=st.floats(-5.0, 5.0),
    k=st.integers(1, 5),
)
@settings(max_examples=40)
def test_stretching_and_shifting_inputs_or_gates_changes_nothing(
    seed: int, stretch: float, shift: float, k: int
) -> None:
    x_BTI, gates_EI = drawn(seed, 2, 3, WIDTH), drawn(seed + 1, 4, WIDTH)
    router = Phatgoose(k=k)
    plain = weights_of(router, gates_EI, x_BTI)
    close = {"atol": 2e-3, "rtol": 0}  # eps of the normalisation: 1e-5 beside a variance of 1/4
    torch.testing.assert_close(
        weights_of(Phatgoose(k=5), gates_EI, x_BTI),
        weights_of(Phatgoose(k=5), gates_EI, stretch * x_BTI + shift),
        **close,
    )
    torch.testing.assert_close(
        weights_of(Phatgoose(k=5), gates_EI, x_BTI),
        weights_of(Phatgoose(k=5), stretch * gates_EI + shift, x_BTI),
        **close,
    )
    assert int((plain != 0).sum(-1).max()) == min(k, 4)


def test_scores_are_correlations_times_the_root_of_the_width() -> None:
    x_BTI, gates_EI = drawn(0, 2, 3, WIDTH), drawn(1, 4, WIDTH)
    bank, router = bank_of(gates_EI), Phatgoose()
    router.prepare(bank)
    scores = router.scores(input_of(bank, x_BTI))[:, :, 0].flatten(0, 1)
    both = torch.cat([x_BTI.flatten(0, 1), gates_EI])
    wanted = torch.corrcoef(both)[:6, 6:] * WIDTH**0.5
    torch.testing.assert_close(scores, wanted, atol=1e-3, rtol=0)
    assert scores.abs().max() <= WIDTH**0.5


@given(seed=st.integers(0, 10_000), k=st.integers(4, 9))
@settings(max_examples=20)
def test_as_many_places_as_experts_is_the_whole_softmax(seed: int, k: int) -> None:
    x_BTI, gates_EI = drawn(seed, 2, 3, WIDTH), drawn(seed + 1, 4, WIDTH)
    bank, router = bank_of(gates_EI), Phatgoose(k=k)
    router.prepare(bank)
    found = router.route(input_of(bank, x_BTI)).dense(4)
    torch.testing.assert_close(found, torch.softmax(router.scores(input_of(bank, x_BTI)), -1))


def test_ties_go_to_the_lower_expert() -> None:
    gate_I = drawn(0, WIDTH)
    weights = weights_of(Phatgoose(k=2), gate_I.repeat(6, 1), drawn(1, 1, 4, WIDTH))
    assert (weights[..., :2] == 0.5).all()
    assert (weights[..., 2:] == 0).all()


def test_an_untrained_gate_is_refused_unless_allowed() -> None:
    gates_EI = torch.stack([drawn(0, WIDTH), torch.zeros(WIDTH)])
    with pytest.raises(InputError, match="'e1' at layer is constant"):
        Phatgoose().prepare(bank_of(gates_EI))
    router = build_router("phatgoose:untrained=true:k=1")
    assert isinstance(router, Phatgoose)
    x_BTI = drawn(3, 1, 50, WIDTH)
    bank = bank_of(gates_EI)
    router.prepare(bank)
    scores = router.scores(input_of(bank, x_BTI))
    assert (scores[..., 1] == 0).all()
    beaten = scores[..., 0] < 0
    assert beaten.any()
    assert torch.equal(router.route(input_of(bank, x_BTI)).dense(2)[..., 1] == 1, beaten)


def test_a_gate_that_was_hardly_trained_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Phatgoose().prepare(bank_of(1e-3 * drawn(0, 2, WIDTH)))
    assert "standard deviation below 0.01" in caplog.text


def test_a_missing_gate_names_the_layer() -> None:
    bank = AdapterBank([replace(bank_of(drawn(0, 1, WIDTH)).experts()[0], artifacts={})])
    with pytest.raises(InputError, match="no 'gate' for layer"):
        Phatgoose().prepare(bank)


def test_dead_experts_get_no_weight_and_more_places_than_experts_do_no_harm() -> None:
    lora = LoRA(a_RI=torch.ones(1, WIDTH), b_OR=torch.ones(3, 1), scale=1.0)
    module = ModuleBank(LAYER, [lora, None, lora])
    module.set_artifact("gate", drawn(0, 3, WIDTH))
    bank = bank_of(drawn(0, 3, WIDTH))
    router = Phatgoose(k=3)
    router.prepare(bank)
    found = router.route(
        RouteInput(module=LAYER, x_BTI=drawn(1, 2, 5, WIDTH), bank=module, call=Call())
    )
    found.check(module)
    assert (found.dense(3)[..., 1] == 0).all()


def test_an_expert_that_never_wins_a_place_leaves_every_bit() -> None:
    # The dense kernel multiplies the newcomer by 0 instead of leaving it out, and rounds otherwise.
    model, few = toys.tiny_llama(), toys.ids(1, 4)
    few_layers: dict[str, Any] = {"ends": ("q_proj", "v_proj"), "kinds": ("gate",)}
    bank = AdapterBank(toys.strangers(model, 3, **few_layers))
    inputs = layer_inputs(model, bank, few)
    routed = RoutedModel(model, bank, Phatgoose(), kernel="grouped")
    before = model(few).logits
    newcomer = toys.strangers(model, 4, **few_layers)[3]
    bank.add(replace(newcomer, artifacts={"gate": losing_gates(bank, inputs)}))
    after = model(few).logits
    for layer, routing in routed.last_routings.items():
        assert (routing.dense(4)[..., 3] == 0).all(), layer
    assert torch.equal(after, before)
    bank.remove("e3")
    assert torch.equal(model(few).logits, before)


def test_experts_that_leave_and_return_leave_every_bit() -> None:
    model = toys.tiny_llama()
    bank = AdapterBank(toys.strangers(model, 4, kinds=("gate",)))
    routed = RoutedModel(model, bank, Phatgoose())
    before = model(toys.ids()).logits
    last = bank.remove("e3")
    without = model(toys.ids()).logits
    assert not torch.equal(without, before)
    bank.add(last)
    assert torch.equal(model(toys.ids()).logits, before)
    routed.unwrap()


def test_the_router_is_built_again_from_its_settings() -> None:
    router = build_router("phatgoose:k=3:temperature=2")
    again = build_router("phatgoose", **router.settings())
    assert again.settings() == {"k": 3, "temperature": 2.0, "untrained": False}


def layer_inputs(model: nn.Module, bank: AdapterBank, ids_BT: Tensor) -> dict[str, Tensor]:
    """Inputs of every routed layer, tokens in one axis, as the routed model computes them."""
    inputs: dict[str, Tensor] = {}

    class Watching(Phatgoose):
        def route(self, given: RouteInput):  # type: ignore[no-untyped-def]
            inputs[given.module] = given.x_BTI.flatten(0, 1)
            return super().route(given)

    routed = RoutedModel(model, bank, Watching())
    model(ids_BT)  # type: ignore[operator]
    routed.unwrap()
    return inputs


def losing_gates(bank: AdapterBank, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """For every layer a gate whose score is below the second best of every token."""
    router = Phatgoose(k=2)
    router.prepare(bank)
    found = {}
    for layer, x_NI in inputs.items():
        given = RouteInput(module=layer, x_BTI=x_NI[None], bank=bank.layers[layer], call=Call())
        second_N = router.scores(given)[0, :, 0].sort(-1).values[:, -2]
        unit_NI = nn.functional.layer_norm(x_NI, x_NI.shape[-1:])
        # The gate that all tokens are equally far from: few tokens in many dimensions have one.
        against_N1 = -torch.ones(len(x_NI), 1)
        gate_I = torch.linalg.lstsq(unit_NI, against_N1).solution[:, 0]
        score_N = unit_NI @ nn.functional.layer_norm(gate_I, gate_I.shape) * len(gate_I) ** -0.5
        assert (score_N < second_N).all(), layer
        found[layer] = gate_I
    return found


@pytest.mark.parametrize("value", [0.0, 0.1, 1.7])
def test_a_constant_gate_of_any_value_is_refused(value: float) -> None:
    # The spread of a constant is not 0 once it is rounded.
    gates_EI = torch.stack([drawn(0, 576), torch.full((576,), value)])
    with pytest.raises(InputError, match="'e1' at layer is constant"):
        Phatgoose().prepare(bank_of(gates_EI))
