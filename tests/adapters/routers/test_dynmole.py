"""DynMoLE: entropies, the selection that follows them, and the losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.contract import Call, RouteInput, Routing
from crossroads.adapters.routers.dynmole import DynMoLE
from crossroads.core.errors import UsageError
from crossroads.core.gating import tsallis_entropy

LAYER, INPUTS = "layers.0.proj", 12
Tensor = torch.Tensor


def bank(experts: int = 6, layers: tuple[str, ...] = (LAYER,)) -> AdapterBank:
    one = LoRA(a_RI=torch.ones(2, INPUTS), b_OR=torch.ones(5, 2), scale=1.0)
    return AdapterBank(
        [Expert(name=f"e{e}", modules=dict.fromkeys(layers, one)) for e in range(experts)]
    )


def probabilities(*rows: list[float]) -> Tensor:
    return torch.tensor([rows])


def test_the_published_code_adds_to_every_probability() -> None:
    router = DynMoLE(eps_mode="add")
    for n, certain, uniform in [(6, -1.6e-4, 0.9997), (64, -6e-4, 0.9986)]:
        one_hot = torch.nn.functional.one_hot(torch.tensor(0), n).float()
        assert float(router.uncertainty(one_hot, n)) == pytest.approx(certain, rel=0.1)
        found = float(router.uncertainty(torch.full((n,), 1 / n), n))
        assert found == pytest.approx(uniform, abs=2e-4)


def test_equal_probabilities_broadcast_and_a_sure_one_keeps_the_floor() -> None:
    router = DynMoLE()
    kept = router.kept(probabilities([1 / 6] * 6, [0.95, *[0.01] * 5]), 6)
    assert kept.sum(-1).tolist() == [[6, 2]]


def test_the_expert_that_crosses_top_p_is_not_kept() -> None:
    router = DynMoLE(top_p=0.75, keep=1, broadcast=1.0)
    probs = probabilities([0.4, 0.3, 0.2, 0.1], [0.4, 0.36, 0.14, 0.1])
    assert router.kept(probs, 4).tolist() == [[[True, True, False, False],
                                              [True, False, False, False]]]  # fmt: skip


def test_a_floor_of_all_experts_is_dense_and_a_threshold_of_1_never_broadcasts() -> None:
    uniform = probabilities([1 / 6] * 6)
    assert DynMoLE(top_p=1.0, keep=6).kept(uniform, 6).all()
    assert DynMoLE(broadcast=1.0).kept(uniform, 6).sum() == 4  # 4/6 is within 0.75


def test_top_p_of_1_keeps_all_whatever_the_rounding_of_sums() -> None:
    draw = torch.Generator().manual_seed(0)
    probs_BTE = torch.randn(1, 5000, 6, generator=draw).softmax(-1)
    assert (probs_BTE.sort(descending=True).values.cumsum(-1)[..., -1] > 1).any()
    assert DynMoLE(top_p=1.0, keep=2, broadcast=1.0).kept(probs_BTE, 6).all()


def test_only_what_is_more_unsure_than_the_threshold_is_broadcast() -> None:
    probs = probabilities([0.5, 0.3, 0.15, 0.05])
    unsure = float(DynMoLE().uncertainty(probs, 4))
    for broadcast, kept in ((unsure, 1), (unsure - 1e-4, 4), (unsure + 1e-4, 1)):
        assert DynMoLE(top_p=0.0, keep=1, broadcast=broadcast).kept(probs, 4).sum() == kept


@given(seed=st.integers(0, 200))
@settings(deadline=None, max_examples=30)
def test_weights_are_the_probabilities_of_the_kept_and_at_least_the_floor_is(seed: int) -> None:
    experts, router = bank(), DynMoLE(seed=seed)
    router.prepare(experts)
    x_BTI = torch.randn(2, 7, INPUTS, generator=torch.Generator().manual_seed(seed)) * 4
    module = experts.layers[LAYER]
    routing = router.route(RouteInput(module=LAYER, x_BTI=x_BTI, bank=module, call=Call()))
    assert routing.logits is not None
    probs = routing.logits.softmax(-1)
    kept = routing.weights > 0
    assert (kept.sum(-1) >= 2).all()
    torch.testing.assert_close(routing.weights[kept], probs[kept])
    assert not routing.normalised


def decided(experts: AdapterBank, router: DynMoLE, scale: float = 1.0) -> dict[str, Routing]:
    call = Call(training=True)
    found = {}
    for place, (layer, module) in enumerate(experts.layers.items()):
        draw = torch.Generator().manual_seed(place)
        x_BTI = torch.randn(2, 5, INPUTS, generator=draw) * scale
        found[layer] = router.route(RouteInput(module=layer, x_BTI=x_BTI, bank=module, call=call))
    return found


def test_the_losses_are_those_of_all_layers_tokens_together() -> None:
    experts, router = bank(layers=("a.0.p", "a.1.p")), DynMoLE()
    router.prepare(experts)
    routings = decided(experts, router, scale=3.0)
    terms = router.losses(routings, Call(training=True))
    probs_NE = torch.cat([r.logits.softmax(-1).reshape(-1, 6) for r in routings.values()])  # type: ignore[union-attr]
    mass_NE = torch.cat([r.weights.reshape(-1, 6) for r in routings.values()])
    balance = 6 * (mass_NE.mean(0) * probs_NE.mean(0)).sum()
    torch.testing.assert_close(terms["balance"].value, balance)
    torch.testing.assert_close(terms["entropy"].value, tsallis_entropy(probs_NE, 1.1).mean())
    assert (terms["balance"].coefficient, terms["entropy"].coefficient) == (0.001, 0.01)
    assert router.losses(routings, Call(training=False)) == {}


def test_padding_is_in_neither_loss() -> None:
    experts, router = bank(), DynMoLE()
    router.prepare(experts)
    routings = decided(experts, router)
    mask_BT = torch.tensor([[True] * 5, [True, True, False, False, False]])
    masked = router.losses(routings, Call(training=True, mask_BT=mask_BT))
    logits = routings[LAYER].logits
    assert logits is not None
    probs_NE = logits.softmax(-1).reshape(-1, 6)[mask_BT.flatten()]
    torch.testing.assert_close(masked["entropy"].value, tsallis_entropy(probs_NE, 1.1).mean())


def test_a_pass_without_tokens_costs_nothing() -> None:
    experts, router = bank(), DynMoLE()
    router.prepare(experts)
    given_ = RouteInput(
        module=LAYER, x_BTI=torch.ones(0, 3, INPUTS), bank=experts.layers[LAYER], call=Call()
    )
    terms = router.losses({LAYER: router.route(given_)}, Call(training=True))
    assert {term.value.item() for term in terms.values()} == {0.0}


@pytest.mark.parametrize("term", ["entropy", "balance"])
def test_a_step_down_the_loss_lowers_what_it_is_for(term: str) -> None:
    experts, router = bank(), DynMoLE(seed=1)
    router.prepare(experts)
    (gate,) = router.gates.weights
    gate.requires_grad_(True)
    if term == "balance":  # one expert gets nearly everything
        gate.data[0] += 0.5
    before = router.losses(decided(experts, router, 2.0), Call(training=True))[term].value
    before.backward()
    gate.data -= 0.5 * gate.grad
    after = router.losses(decided(experts, router, 2.0), Call(training=True))[term].value
    assert after < before


def test_dead_experts_are_never_kept() -> None:
    one = LoRA(a_RI=torch.ones(1, INPUTS), b_OR=torch.ones(5, 1), scale=1.0)
    two_layers = {LAYER: one, "layers.1.proj": one}
    experts = AdapterBank([Expert(name="a", modules={"layers.1.proj": one}),
                           Expert(name="b", modules=two_layers)])  # fmt: skip
    router = DynMoLE(keep=2)
    router.prepare(experts)
    module = experts.layers[LAYER]
    x_BTI = torch.ones(1, 1, INPUTS)
    routing = router.route(RouteInput(module=LAYER, x_BTI=x_BTI, bank=module, call=Call()))
    assert routing.weights.flatten().tolist() == [0.0, 1.0]


def test_entropy_is_1_where_the_experts_a_layer_has_are_alike() -> None:
    one = LoRA(a_RI=torch.ones(1, INPUTS), b_OR=torch.ones(5, 1), scale=1.0)
    layers = {"layers.1.proj": one}
    experts = AdapterBank(
        [Expert(name=name, modules={**layers, LAYER: one}) for name in "abc"]
        + [Expert(name=name, modules=layers) for name in "de"]
    )
    router = DynMoLE(keep=1)
    router.prepare(experts)
    for gate in router.gates.weights:
        gate.data.zero_()
    found = decided(experts, router)
    assert (found[LAYER].weights > 0).sum(-1).unique().tolist() == [3]  # broadcast
    for layer, figures in router.by_layer(found, Call()).items():
        expected = {"entropy": 1.0, "balance": 1.0, "broadcast": 1.0}
        assert figures == pytest.approx(expected, abs=1e-6), layer
    terms = router.losses(found, Call(training=True))
    assert terms["entropy"].value.item() == pytest.approx(1.0, abs=1e-6)
    # Together: three experts have (1/3 + 1/5) / 2 of all tokens and two of them (0 + 1/5) / 2.
    together = 5 * (3 * (4 / 15) ** 2 + 2 * (1 / 10) ** 2)
    assert terms["balance"].value.item() == pytest.approx(together, rel=1e-5)


def test_unbalanced_layers_are_seen_though_together_they_are_balanced() -> None:
    experts, router = bank(experts=2, layers=("a.0.p", "a.1.p")), DynMoLE(keep=1)
    router.prepare(experts)
    call, x_BTI = Call(training=True), torch.ones(1, 4, INPUTS)
    for gate, lean in zip(router.gates.weights, (1.0, -1.0), strict=True):
        gate.data = torch.stack([torch.full((INPUTS,), lean), torch.full((INPUTS,), -lean)]) / 4
    found = {
        layer: router.route(RouteInput(module=layer, x_BTI=x_BTI, bank=module, call=call))
        for layer, module in experts.layers.items()
    }
    layers = router.by_layer(found, call)
    together = router.losses(found, call)["balance"].value.item()
    assert all(figures["balance"] > 1.5 * together for figures in layers.values())
    assert {figures["broadcast"] for figures in layers.values()} == {0.0}


def test_the_share_of_broadcast_tokens_counts_real_tokens() -> None:
    experts, router = bank(), DynMoLE()
    router.prepare(experts)
    router.gates.weights[0].data.copy_(torch.eye(6, INPUTS))
    x_BTI = torch.zeros(1, 4, INPUTS)  # equal probabilities, but for one sure token
    x_BTI[0, 1, 2] = 50.0
    mask_BT = torch.tensor([[True, True, False, False]])
    call = Call(mask_BT=mask_BT)
    given_ = RouteInput(module=LAYER, x_BTI=x_BTI, bank=experts.layers[LAYER], call=call)
    figures = router.by_layer({LAYER: router.route(given_)}, call)[LAYER]
    assert figures["broadcast"] == 0.5
    assert figures["entropy"] == pytest.approx(0.5, abs=1e-3)


def test_the_entropy_may_be_renyis() -> None:
    probs = torch.tensor([0.5, 0.3, 0.2])
    found = DynMoLE(kind="renyi", q=2.0).uncertainty(probs, 3)
    assert float(found) == pytest.approx(-math.log(0.25 + 0.09 + 0.04) / math.log(3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "shannon"}, {"eps_mode": "drop"}, {"q": 0.0}, {"keep": 0}, {"top_p": 1.5},
        {"top_p": math.nan}, {"broadcast": math.nan}, {"entropy": math.inf}, {"balance": math.nan},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="dynmole:"):
        DynMoLE(**wrong)  # type: ignore[arg-type]
