"""LoRA-Mixer: hard and soft routing, and both signs of its loss."""

from __future__ import annotations

import math

import pytest
import torch

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.combine import combine
from crossroads.adapters.contract import Call, RouteInput, Routing
from crossroads.adapters.routers.lora_mixer import LoRAMixer
from crossroads.core.errors import UsageError
from crossroads.core.gating import entropy

BLOCK = "layers.0.self_attn"
LAYER, INPUTS, OUTPUTS = f"{BLOCK}.q_proj", 16, 6
Tensor = torch.Tensor


def bank(experts: int = 4, layers: tuple[str, ...] = (LAYER,)) -> AdapterBank:
    draw = torch.Generator().manual_seed(0)
    return AdapterBank([
        Expert(name=f"e{e}", modules={
            layer: LoRA(a_RI=torch.randn(2, INPUTS, generator=draw),
                        b_OR=torch.randn(OUTPUTS, 2, generator=draw), scale=1.0 + e)
            for layer in layers
        })
        for e in range(experts)
    ])  # fmt: skip


def route(router: LoRAMixer, experts: AdapterBank, x_BTI: Tensor, call: Call) -> Routing:
    module = experts.layers[LAYER]
    return router.route(RouteInput(module=LAYER, x_BTI=x_BTI, bank=module, call=call))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_soft_in_training_and_the_three_best_renormalised_at_inference() -> None:
    experts, router = bank(5), LoRAMixer()
    router.prepare(experts)
    x_BTI = drawn(1, 2, 3, INPUTS)
    gate_EI = router.gates.weights[0]
    probs = (x_BTI @ gate_EI.T).softmax(-1)
    soft = route(router, experts, x_BTI, Call(training=True)).dense(5)[:, :, 0]
    torch.testing.assert_close(soft, probs)
    sparse = route(router, experts, x_BTI, Call()).dense(5)[:, :, 0]
    assert ((sparse > 0).sum(-1) == 3).all()
    best = probs.topk(3, -1)
    torch.testing.assert_close(
        sparse.gather(-1, best.indices), best.values / best.values.sum(-1, keepdim=True)
    )


def test_queries_keys_and_values_share_a_gate_and_the_output_has_its_own() -> None:
    layers = tuple(f"{BLOCK}.{part}_proj" for part in "qkvo")
    router = LoRAMixer()
    router.prepare(bank(layers=layers))
    assert len(router.gates.weights) == 2


def test_gates_start_at_random_and_the_same_from_the_seed() -> None:
    first, second = LoRAMixer(seed=4), LoRAMixer(seed=4)
    first.prepare(bank())
    second.prepare(bank())
    assert torch.equal(first.gates.weights[0], second.gates.weights[0])
    assert first.gates.weights[0].std().item() == pytest.approx(0.02, rel=0.4)


def test_a_label_gives_its_expert_alone_and_no_other_any_gradient() -> None:
    experts, router = bank(), LoRAMixer(hard=True)
    router.prepare(experts)
    module = experts.layers[LAYER]
    module.b_EOR.requires_grad_(True)
    x_BTI = drawn(2, 2, 3, INPUTS)
    call = Call(training=True, labels_B=torch.tensor([2, 0]))
    routing = route(router, experts, x_BTI, call)
    added = combine(x_BTI, module, routing)
    for row, expert in enumerate([2, 0]):
        lora = module.lora(expert)
        assert lora is not None
        torch.testing.assert_close(added[row], x_BTI[row] @ lora.delta_OI().T, atol=1e-4, rtol=1e-4)
    added.square().sum().backward()
    assert module.b_EOR.grad is not None
    assert module.b_EOR.grad[[1, 3]].abs().max() == 0
    assert (module.b_EOR.grad[[0, 2]].abs().amax((1, 2)) > 0).all()


def test_a_sequence_without_a_label_is_routed_softly() -> None:
    experts, router = bank(), LoRAMixer(hard=True)
    router.prepare(experts)
    x_BTI = drawn(2, 2, 3, INPUTS)
    hard = route(router, experts, x_BTI, Call(training=True, labels_B=torch.tensor([-1, 1])))
    soft = route(router, experts, x_BTI, Call(training=True))
    torch.testing.assert_close(hard.dense(4)[0], soft.dense(4)[0])


def test_one_expert_is_plain_lora() -> None:
    experts, router = bank(1), LoRAMixer()
    router.prepare(experts)
    assert (route(router, experts, drawn(3, 1, 4, INPUTS), Call()).dense(1) == 1).all()


def test_at_uniform_probabilities_the_terms_have_their_known_values() -> None:
    experts, router = bank(), LoRAMixer()
    router.prepare(experts)
    router.gates.weights[0].data.zero_()
    call = Call(training=True)
    routings = {LAYER: route(router, experts, drawn(4, 2, 8, INPUTS), call)}
    terms = router.losses(routings, call)
    assert terms["balance"].value.item() == pytest.approx(1.0)
    assert terms["entropy"].value.item() == pytest.approx(math.log(4))
    plain = LoRAMixer(scaled=False)
    assert plain.losses(routings, call)["balance"].value.item() == pytest.approx(0.25)
    assert LoRAMixer(entropy="as_printed").losses(routings, call)["entropy"].coefficient == -0.01


@pytest.mark.parametrize(("k", "picked"), [(1, 1), (2, 2), (3, 3), (4, 3), (9, 3)])
def test_the_balance_counts_the_k_best_of_a_token_but_never_all(k: int, picked: int) -> None:
    experts, router = bank(), LoRAMixer(k=k)
    router.prepare(experts)
    router.gates.weights[0].data.copy_(drawn(8, 4, INPUTS))
    call = Call(training=True)
    routing = route(router, experts, drawn(9, 2, 8, INPUTS), call)
    probs_NE = routing.dense(4).flatten(0, 2)
    counted_E = torch.zeros(4)
    for probs_E in probs_NE:
        counted_E[probs_E.argsort(descending=True)[:picked]] += 1
    by_hand = 4 * (counted_E / counted_E.sum() * probs_NE.mean(0)).sum()
    found = router.losses({LAYER: routing}, call)["balance"].value
    torch.testing.assert_close(found, by_hand)


def test_experts_that_adapt_no_layer_of_a_decision_are_not_in_its_loss() -> None:
    other = "layers.1.self_attn.q_proj"
    lora = LoRA(a_RI=torch.ones(2, INPUTS), b_OR=torch.ones(OUTPUTS, 2), scale=1.0)
    there = [Expert(name=name, modules={LAYER: lora, other: lora}) for name in "ab"]
    alone, wider = (
        AdapterBank([*there, *(Expert(name=name, modules={other: lora}) for name in absent)])
        for absent in ("", "cde")
    )
    call, x_BTI = Call(training=True), drawn(6, 2, 8, INPUTS)
    found = []
    for experts in (alone, wider):
        router = LoRAMixer(k=2)
        router.prepare(experts)
        router.gates.weights[0].data[:2] = drawn(7, 2, INPUTS)
        found.append(router.losses({LAYER: route(router, experts, x_BTI, call)}, call))
    for term in ("balance", "entropy"):
        torch.testing.assert_close(found[1][term].value, found[0][term].value)


def test_padding_is_in_neither_term() -> None:
    experts, router = bank(), LoRAMixer()
    router.prepare(experts)
    x_BTI = drawn(5, 1, 6, INPUTS) * 30
    mask_BT = torch.tensor([[True, True, True, True, False, False]])
    long = route(router, experts, x_BTI, Call(training=True))
    short = route(router, experts, x_BTI[:, :4], Call(training=True))
    masked = router.losses({LAYER: long}, Call(training=True, mask_BT=mask_BT))
    alone = router.losses({LAYER: short}, Call(training=True))
    for term in ("balance", "entropy"):
        torch.testing.assert_close(masked[term].value, alone[term].value)


def test_a_pass_without_tokens_costs_nothing() -> None:
    experts, router = bank(), LoRAMixer()
    router.prepare(experts)
    call = Call(training=True)
    routing = route(router, experts, torch.ones(0, 3, INPUTS), call)
    terms = router.losses({LAYER: routing}, call)
    assert {term.value.item() for term in terms.values()} == {0.0}


def clusters_routed(sign: str, seed: int) -> tuple[float, float]:
    """Return mean token entropy over ln E and the largest load after training on four clusters."""
    draw = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(4, INPUTS, generator=draw)  # variance 4
    experts = bank()
    router = LoRAMixer(k=1, entropy=sign, seed=seed)
    router.prepare(experts)
    (gate,) = router.gates.weights
    gate.requires_grad_(True)
    optimiser = torch.optim.Adam([gate], lr=1e-2)
    call = Call(training=True)
    for _ in range(600):
        near = centres[torch.randint(4, (64,), generator=draw)]
        x_BTI = (near + 0.5 * torch.randn(64, INPUTS, generator=draw))[None]
        terms = router.losses({LAYER: route(router, experts, x_BTI, call)}, call)
        optimiser.zero_grad()
        sum(term.weighted for term in terms.values()).backward()  # type: ignore[union-attr]
        optimiser.step()
    x_BTI = (centres.repeat(64, 1) + 0.5 * torch.randn(256, INPUTS, generator=draw))[None]
    probs = route(router, experts, x_BTI, call).dense(4).detach()
    load = torch.bincount(probs.argmax(-1).flatten(), minlength=4) / 256
    return (entropy(probs).mean() / math.log(4)).item(), load.max().item()


def test_minimising_entropy_specialises_in_balance() -> None:
    uncertain, largest = clusters_routed("minimise", 0)
    assert uncertain < 0.3
    assert largest < 0.4


def test_the_printed_sign_flattens_routing() -> None:
    assert clusters_routed("as_printed", 0)[0] > 0.9


def test_an_unknown_sign_is_refused() -> None:
    with pytest.raises(UsageError, match="minimise or as_printed"):
        LoRAMixer(entropy="maximise")


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"k": -1}, {"balance": math.nan}, {"peaked": math.inf}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="lora-mixer: expected k of at least 1 and finite"):
        LoRAMixer(**wrong)  # type: ignore[arg-type]
