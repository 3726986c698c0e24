"""The six routers of the vision study: softmax and Sinkhorn token choice, three expert choices,
soft mixtures. The transport plans themselves are tested in ``tests/core/test_transport.py``."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from crossroads.core import losses  # noqa: E402
from crossroads.core.errors import InputError, UsageError  # noqa: E402
from crossroads.core.routed import RouteContext  # noqa: E402
from crossroads.core.transport import sinkhorn_plan  # noqa: E402
from crossroads.moe.contract import (  # noqa: E402
    Dense,
    ExpertChoice,
    Router,
    RouterInput,
    RoutingDecision,
    TokenChoice,
)
from crossroads.moe.experts import FFNBank  # noqa: E402
from crossroads.moe.layer import MoELayer  # noqa: E402
from crossroads.moe.routers import build_router  # noqa: E402
from crossroads.moe.routers.sinkhorn_ec import SinkhornExpertChoice  # noqa: E402
from crossroads.moe.routers.sinkhorn_tc import SinkhornTokenChoice  # noqa: E402
from crossroads.moe.routers.soft import Soft  # noqa: E402
from crossroads.moe.routers.softmax_ec import SoftmaxExpertChoice  # noqa: E402
from crossroads.moe.routers.softmax_tc import SoftmaxTokenChoice  # noqa: E402
from crossroads.moe.routers.sparse_ec import SparseExpertChoice  # noqa: E402

Tensor = torch.Tensor
few = settings(max_examples=15, deadline=None)
EXPERT_CHOICES = ["softmax-ec", "sinkhorn-ec", "sparse-ec"]
NOISE_SEED = 7
GROUP_ROUTERS = [*EXPERT_CHOICES, "sinkhorn-tc", "soft"]


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(x_BTD: Tensor, **fields: Any) -> RouterInput:
    mask_BT = fields.pop("mask_BT", torch.ones(x_BTD.shape[:2], dtype=torch.bool))
    rng = torch.Generator().manual_seed(NOISE_SEED)
    return RouterInput(x_BTD=x_BTD, mask_BT=mask_BT, rng=rng, **fields)


def with_logits(router: Any, logits_NE: Tensor) -> tuple[Any, Tensor]:
    """Return the router and one sequence whose token n, a unit vector, scores ``logits_NE[n]``."""
    router = router.to(logits_NE.dtype)
    with torch.no_grad():
        router.gate.weight.copy_(logits_NE.T)
    return router, torch.eye(len(logits_NE), dtype=logits_NE.dtype)[None]


def layer_of(router: Router, d: int) -> MoELayer:
    torch.manual_seed(1)
    return MoELayer(router, FFNBank(d, 8, router.kinds))


def places(decision: RoutingDecision) -> tuple[Tensor, Tensor]:
    assert isinstance(decision.choice, TokenChoice)
    return decision.choice.idx_NK, decision.choice.w_NK


def slots_of(router: Any, x_BTD: Tensor, **fields: Any) -> ExpertChoice:
    choice = router.decide(view(x_BTD, **fields)).decision.choice
    assert isinstance(choice, ExpertChoice)
    return choice


def mixture_of(router: Soft, x_BTD: Tensor, **fields: Any) -> Dense:
    choice = router.decide(view(x_BTD, **fields)).decision.choice
    assert isinstance(choice, Dense)
    return choice


# ---------------------------------------------------------------------------- softmax token choice


def test_softmax_token_choice_weighs_by_the_noisy_softmax_without_renormalising() -> None:
    router, x_BTD = with_logits(SoftmaxTokenChoice(4, 3, k=2), tokens(1, 4, 3)[0])
    decision = router.decide(view(x_BTD, training=True)).decision
    idx_NK, w_NK = places(decision)
    assert not torch.equal(decision.probs_NE, decision.logits_NE.softmax(-1))
    torch.testing.assert_close(w_NK, decision.probs_NE.gather(-1, idx_NK))
    assert bool((w_NK.sum(-1) < 1).all())


def test_its_losses_are_importance_of_clean_and_load_of_noisy_logits() -> None:
    router, x_BTD = with_logits(SoftmaxTokenChoice(6, 3, k=1), tokens(1, 6, 3)[0])
    answer = router.decide(view(x_BTD, training=True))
    mask = torch.ones(1, 6, dtype=torch.bool)
    clean = answer.decision.logits_NE[None]
    noisy = clean + tokens(*clean.shape, seed=NOISE_SEED) / 3
    expected = {
        "importance": losses.importance(clean.softmax(-1), mask),
        "load": losses.load(clean, noisy, mask, 1, 1 / 3),
    }
    assert answer.aux.keys() == expected.keys()
    for name, value in expected.items():
        assert answer.aux[name].coefficient == 0.005
        torch.testing.assert_close(answer.aux[name].value, value)


def test_a_load_loss_without_noise_is_refused_and_left_out_as_told() -> None:
    with pytest.raises(UsageError, match=r"load: .* needs noise, .* set load=0 as well"):
        build_router("softmax-tc:noise_std=0", 4, 3)
    router = SoftmaxTokenChoice(4, 3, noise_std=0.0, load=0.0, balance=0.01)
    aux = router.decide(view(tokens(1, 5, 4), training=True)).aux
    assert aux.keys() == {"importance", "balance"}


def test_losses_stay_finite_where_fewer_than_k_experts_are_allowed() -> None:
    router = SoftmaxTokenChoice(4, 3, k=2)
    allow = torch.tensor([[True, False, False]])
    answer = router.decide(view(tokens(1, 5, 4), training=True, allow=allow))
    total = sum(term.weighted for term in answer.aux.values())
    total.backward()
    assert bool(torch.isfinite(total))
    assert bool(torch.isfinite(router.gate.weight.grad).all())


# ---------------------------------------------------------------------------- Sinkhorn token choice


@few
@given(seed=st.integers(0, 2**31), shift=st.floats(-4, 4))
def test_sinkhorn_choices_ignore_a_constant_per_expert(seed: int, shift: float) -> None:
    logits = tokens(1, 16, 4, seed=seed)[0].double()
    router, x_BTD = with_logits(SinkhornTokenChoice(16, 4, iters=100), logits)
    bias_E = torch.tensor([shift, 0.0, -shift, 0.0], dtype=torch.float64)
    plain = places(router.decide(view(x_BTD)).decision)[0]
    moved = places(router.decide(view(x_BTD, logit_bias=bias_E)).decision)[0]
    assert torch.equal(plain, moved)


def test_softmax_choices_follow_a_constant_per_expert() -> None:
    logits = tokens(1, 16, 4)[0]
    router, x_BTD = with_logits(SoftmaxTokenChoice(16, 4), logits)
    moved = places(router.decide(view(x_BTD, logit_bias=torch.tensor([9.0, 0, 0, 0]))).decision)[0]
    assert bool((moved == 0).all())


def test_sinkhorn_serves_all_experts_where_tokens_are_nearly_equal() -> None:
    """Tokens of an untrained network: one expert wins all rows, the plan spreads them."""
    x_BTD = tokens(1, 1, 16) + 0.05 * tokens(4, 16, 16, seed=1)
    loads = {}
    for made in (SoftmaxTokenChoice(16, 8), SinkhornTokenChoice(16, 8)):
        torch.manual_seed(0)
        made.gate.reset_parameters()
        count_E = made.decide(view(x_BTD)).decision.stats["count_E"]
        loads[made.name] = float(count_E.max() / count_E.mean())
    assert loads["softmax-tc"] > 6
    assert loads["sinkhorn-tc"] < 3


def test_noise_moves_the_plan_and_not_the_weight() -> None:
    router, x_BTD = with_logits(SinkhornTokenChoice(64, 4), tokens(1, 64, 4)[0])
    calm, noisy = (router.decide(view(x_BTD, training=t)).decision for t in (False, True))
    idx_NK, w_NK = places(noisy)
    assert not torch.equal(idx_NK, places(calm)[0])
    torch.testing.assert_close(w_NK, calm.logits_NE.softmax(-1).gather(-1, idx_NK))


def test_sinkhorn_choices_are_the_best_of_each_row_of_the_plan() -> None:
    logits = tokens(1, 12, 4)[0]
    router, x_BTD = with_logits(SinkhornTokenChoice(12, 4, k=2), logits)
    idx_NK, _ = places(router.decide(view(x_BTD)).decision)
    expected = sinkhorn_plan(logits[None])[0].sort(-1, descending=True).indices[:, :2]
    assert torch.equal(idx_NK, expected)


def test_each_combine_weight_is_what_it_says() -> None:
    logits = tokens(1, 12, 4)[0]
    plan = sinkhorn_plan(logits[None])[0]
    best = plan.argmax(-1, keepdim=True)
    expected = {
        "softmax": logits.softmax(-1).gather(-1, best),
        "sigmoid": logits.sigmoid().gather(-1, best),
        "plan": plan.gather(-1, best),
    }
    for combine, weight in expected.items():
        router, x_BTD = with_logits(SinkhornTokenChoice(12, 4, combine=combine), logits)
        torch.testing.assert_close(places(router.decide(view(x_BTD)).decision)[1], weight)
    router, x_BTD = with_logits(SinkhornTokenChoice(12, 4, combine="sigmoid", k=2), logits)
    idx_NK, w_NK = places(router.decide(view(x_BTD)).decision)
    torch.testing.assert_close(w_NK, logits.softmax(-1).gather(-1, idx_NK))


def test_the_plan_carries_gradient_only_where_it_weighs() -> None:
    """A weight from the plan moves with the logits of other tokens, one from the softmax not."""
    for combine, is_joint in (("softmax", False), ("plan", True)):
        torch.manual_seed(0)
        router = SinkhornTokenChoice(8, 4, combine=combine)
        x_BTD = tokens(1, 12, 8).requires_grad_()
        _, w_NK = places(router.decide(view(x_BTD)).decision)
        w_NK[0].sum().backward()
        others = x_BTD.grad[0, 1:]
        assert bool((others.abs() > 1e-9).any()) is is_joint


def test_without_a_plan_in_evaluation_choices_follow_the_logits() -> None:
    logits = tokens(1, 12, 4)[0] + torch.tensor([5.0, 0.0, 0.0, 0.0])
    router, x_BTD = with_logits(SinkhornTokenChoice(12, 4, eval_plan=False), logits)
    assert bool((places(router.decide(view(x_BTD)).decision)[0] == 0).all())
    trained = places(router.decide(view(x_BTD, training=True)).decision)[0]
    assert len(set(trained.flatten().tolist())) > 1


# ---------------------------------------------------------------------------- expert choice


def test_softmax_expert_choice_of_the_worked_example() -> None:
    gates = torch.log(torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]]))
    router, x_BTD = with_logits(SoftmaxExpertChoice(3, 2, cf=4 / 3), gates)
    choice = slots_of(router, x_BTD)
    assert choice.tok_GEC.tolist() == [[[1, 0], [2, 0]]]
    expected = torch.tensor([[[0.7, 0.6], [0.8, 0.4]]])
    torch.testing.assert_close(choice.w_GEC, expected)


@few
@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(["softmax-ec", "sinkhorn-ec"]),
    length=st.integers(1, 20),
    cf=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
)
def test_every_expert_takes_exactly_c_different_tokens(
    seed: int, name: str, length: int, cf: float
) -> None:
    torch.manual_seed(seed)
    choice = slots_of(build_router(name, 8, 4, cf=cf), tokens(2, length, 8, seed=seed))
    slots = min(max(round(length * cf / 4), 1), length)
    assert choice.tok_GEC.shape == (2, 4, slots)
    for row in choice.tok_GEC.reshape(-1, slots).tolist():
        assert len(set(row)) == slots
        assert min(row) >= 0


@pytest.mark.parametrize("name", EXPERT_CHOICES)
def test_slots_follow_the_real_tokens_of_each_group(name: str) -> None:
    mask_BT = torch.ones(3, 16, dtype=torch.bool)
    mask_BT[1, 5:] = False
    mask_BT[2] = False
    choice = slots_of(build_router(name, 8, 4), tokens(3, 16, 8), mask_BT=mask_BT)
    taken_GE = (choice.tok_GEC >= 0).sum(-1)
    assert choice.tok_GEC.shape[-1] == 4
    assert bool((taken_GE[0] <= 4).all())
    assert bool((taken_GE[1] == 1).all())
    assert bool((taken_GE[2] == 0).all())
    assert bool((choice.tok_GEC[1] < 5).all())
    assert bool((choice.w_GEC[choice.tok_GEC < 0] == 0).all())


def test_half_a_slot_goes_to_the_even_neighbour() -> None:
    assert slots_of(build_router("softmax-ec", 8, 4), tokens(1, 10, 8)).tok_GEC.shape[-1] == 2


@pytest.mark.parametrize("name", ["softmax-ec", "sinkhorn-ec"])
def test_room_for_everybody_is_the_dense_mixture(name: str) -> None:
    torch.manual_seed(0)
    layer = layer_of(build_router(name, 8, 4, cf=4.0), 8)
    h_BTD = tokens(2, 6, 8)
    p_BTE = layer.routers[0].gate(h_BTD).softmax(-1)
    expected = sum(p_BTE[..., e : e + 1] * layer.experts.expert(e, h_BTD) for e in range(4))
    torch.testing.assert_close(layer(h_BTD).delta, expected, atol=1e-5, rtol=1e-4)


def test_more_room_than_tokens_is_room_for_everybody() -> None:
    torch.manual_seed(0)
    router = build_router("softmax-ec", 8, 4, cf=4.0)
    wider = build_router("softmax-ec", 8, 4, cf=9.0)
    wider.load_state_dict(router.state_dict())
    x_BTD = tokens(2, 6, 8)
    assert torch.equal(slots_of(router, x_BTD).tok_GEC, slots_of(wider, x_BTD).tok_GEC)


def test_experts_may_have_other_room_in_evaluation() -> None:
    router = build_router("softmax-ec", 8, 4, cf=1.0, eval_cf=2.0)
    sizes = [
        slots_of(router, tokens(1, 8, 8), training=training).tok_GEC.shape[-1]
        for training in (True, False)
    ]
    assert sizes == [2, 4]


def test_the_z_loss_of_experts_that_choose_is_of_clean_logits() -> None:
    router, x_BTD = with_logits(SoftmaxExpertChoice(6, 3, z_loss=0.1), tokens(1, 6, 3)[0])
    answer = router.decide(view(x_BTD, training=True))
    clean = answer.decision.logits_NE
    expected = losses.z_loss(clean, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(answer.aux["z"].value, expected)
    assert not torch.allclose(answer.decision.probs_NE, clean.softmax(-1))


def test_equal_wishes_go_to_the_earlier_token() -> None:
    router, _ = with_logits(SoftmaxExpertChoice(4, 2, cf=1.0), torch.zeros(4, 2))
    assert slots_of(router, torch.zeros(1, 4, 4)).tok_GEC.tolist() == [[[0, 1], [0, 1]]]


def test_sinkhorn_expert_choice_ranks_by_the_plan_and_weighs_by_the_noisy_softmax() -> None:
    logits = tokens(1, 12, 4)[0]
    router, x_BTD = with_logits(SinkhornExpertChoice(12, 4), logits)
    answer = router.decide(view(x_BTD, training=True)).decision
    noise = tokens(12, 4, seed=NOISE_SEED) / 4
    plan = sinkhorn_plan((logits + noise)[None])[0]
    expected = plan.sort(0, descending=True).indices[:3].T
    assert torch.equal(answer.choice.tok_GEC[0], expected)
    weight = (logits + noise).softmax(-1).T.gather(1, expected)
    torch.testing.assert_close(answer.choice.w_GEC[0], weight)


def test_sparse_expert_choice_adds_no_noise_and_weighs_by_the_clean_softmax() -> None:
    logits = tokens(1, 16, 4)[0]
    router, x_BTD = with_logits(SparseExpertChoice(16, 4), logits)
    trained, judged = (slots_of(router, x_BTD, training=t) for t in (True, False))
    assert torch.equal(trained.tok_GEC, judged.tok_GEC)
    taken = trained.tok_GEC[0] >= 0
    weight = logits.softmax(-1).T.gather(1, trained.tok_GEC[0].clamp_min(0))
    torch.testing.assert_close(trained.w_GEC[0][taken], weight[taken])


def test_a_slot_without_mass_in_the_sparse_plan_stays_empty_unless_asked_for() -> None:
    # One token so far ahead for expert 0 that its column of the plan holds it alone.
    logits = torch.zeros(4, 2)
    logits[0, 0] = 50.0
    settings = {"cf": 1.0, "gamma": 0.01, "inner_iters": 0}
    router, x_BTD = with_logits(SparseExpertChoice(4, 2, **settings), logits)
    assert slots_of(router, x_BTD).tok_GEC[0, 0].tolist() == [0, -1]
    router, x_BTD = with_logits(SparseExpertChoice(4, 2, drop_zero_plan=False, **settings), logits)
    assert slots_of(router, x_BTD).tok_GEC[0, 0].tolist() == [0, 1]


def test_a_forced_token_comes_first_in_the_queue_of_its_expert() -> None:
    logits = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    router, x_BTD = with_logits(SoftmaxExpertChoice(4, 2, noise_std=0.0), logits)
    force = torch.tensor([[-1, -1, -1, 0]])
    assert slots_of(router, x_BTD, force_BT=force, training=True).tok_GEC[0, 0].tolist() == [3, 0]
    assert slots_of(router, x_BTD, force_BT=force).tok_GEC[0, 0].tolist() == [0, 1]
    with pytest.raises(InputError, match="force: expected shape"):
        slots_of(router, x_BTD, force_BT=force[:, :2], training=True)


# ---------------------------------------------------------------------------- soft


@few
@given(seed=st.integers(0, 2**31), slots=st.integers(1, 3), real=st.integers(1, 9))
def test_soft_dispatch_sums_to_one_over_tokens_and_combine_over_slots(
    seed: int, slots: int, real: int
) -> None:
    torch.manual_seed(seed)
    mask_BT = torch.ones(2, 9, dtype=torch.bool)
    mask_BT[1, real:] = False
    choice = mixture_of(Soft(8, 4, slots=slots), tokens(2, 9, 8, seed=seed), mask_BT=mask_BT)
    ones = torch.ones(2, 4, slots)
    torch.testing.assert_close(choice.dispatch_GSEC.sum(1), ones)
    torch.testing.assert_close(choice.combine_GSEC.sum((2, 3)), mask_BT.float())
    assert bool((choice.dispatch_GSEC[~mask_BT] == 0).all())


def test_all_parameters_of_a_soft_layer_and_its_input_get_gradient() -> None:
    torch.manual_seed(0)
    layer = layer_of(Soft(8, 4, slots=2), 8)
    h_BTD = tokens(2, 6, 8).requires_grad_()
    layer(h_BTD).delta.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert bool((parameter.grad != 0).all()), name
    assert bool((h_BTD.grad != 0).all())


def test_one_soft_slot_gives_all_tokens_the_same_output() -> None:
    layer = layer_of(Soft(8, 1, slots=1), 8)
    delta = layer(tokens(2, 6, 8)).delta
    torch.testing.assert_close(delta, delta[:, :1].expand_as(delta))


def test_soft_experts_see_mixtures_of_the_tokens_as_they_are() -> None:
    """Written out: normalised tokens in the logits, raw ones in the mixture."""
    torch.manual_seed(0)
    layer = layer_of(Soft(8, 3, slots=2, scale_init=2.0), 8)
    router, x_SD = layer.routers[0], 5 * tokens(1, 6, 8)[0]
    unit_SD = x_SD / x_SD.norm(dim=-1, keepdim=True)
    mu = router.mu_DEC / router.mu_DEC.norm(dim=0, keepdim=True)
    logits = 2.0 * torch.einsum("sd,dec->sec", unit_SD, mu)
    slots = torch.einsum("sec,sd->ecd", logits.softmax(0), x_SD)
    outputs = torch.stack([layer.experts.expert(e, slots[e]) for e in range(3)])
    combine = logits.flatten(1).softmax(-1).reshape(logits.shape)
    expected = torch.einsum("sec,ecd->sd", combine, outputs)
    torch.testing.assert_close(layer(x_SD[None]).delta[0], expected, atol=1e-5, rtol=1e-4)


def test_a_group_of_padding_alone_is_zero_with_finite_gradients() -> None:
    mask_BT = torch.tensor([[True] * 4, [False] * 4])
    layer = layer_of(Soft(8, 3), 8)
    h_BTD = tokens(2, 4, 8).requires_grad_()
    delta = layer(h_BTD, RouteContext(mask_BT=mask_BT)).delta
    assert bool((delta[1] == 0).all())
    delta.square().sum().backward()
    assert bool(torch.isfinite(h_BTD.grad).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters())


@pytest.mark.parametrize(
    ("settings", "slots", "active"),
    [
        ({}, 1, 1.0),
        ({"slots": 3}, 3, 1.0),
        ({"tokens": 16}, 2, 1.0),
        ({"tokens": 16, "cf": 2.0}, 4, 2.0),
        ({"tokens": 3}, 1, 8 / 3),
    ],
)
def test_soft_slots_come_from_the_nominal_length(
    settings: dict[str, Any], slots: int, active: float
) -> None:
    router = Soft(8, 8, **settings)
    assert router.slots == slots
    assert router.mu_DEC.shape == (8, 8, slots)
    assert router.nominal_active == pytest.approx(active)


def test_a_length_that_differs_from_the_nominal_one_is_no_error() -> None:
    assert mixture_of(Soft(8, 4, tokens=16), tokens(1, 5, 8)).dispatch_GSEC.shape == (1, 5, 4, 4)


def test_a_logit_bias_moves_combine_and_leaves_dispatch() -> None:
    router, x_BTD = Soft(8, 4), tokens(1, 6, 8)
    plain = mixture_of(router, x_BTD)
    moved = mixture_of(router, x_BTD, logit_bias=torch.tensor([2.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(plain.dispatch_GSEC, moved.dispatch_GSEC)
    assert bool((moved.combine_GSEC[:, :, 0] > plain.combine_GSEC[:, :, 0]).all())


def test_nobody_can_be_forced_into_one_soft_expert() -> None:
    force = torch.zeros(1, 6, dtype=torch.int64)
    with pytest.raises(InputError, match="force: soft routing runs every expert"):
        Soft(8, 4).decide(view(tokens(1, 6, 8), force_BT=force, training=True))


# ---------------------------------------------------------------------------- all that see a group


@few
@given(seed=st.integers(0, 2**31), name=st.sampled_from(GROUP_ROUTERS))
def test_permuting_tokens_permutes_outputs(seed: int, name: str) -> None:
    torch.manual_seed(seed)
    layer = layer_of(build_router(name, 8, 4), 8)
    h_BTD = tokens(2, 12, 8, seed=seed)
    order_T = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        layer(h_BTD).delta[:, order_T], layer(h_BTD[:, order_T]).delta, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", GROUP_ROUTERS)
def test_sequences_of_a_batch_do_not_touch_each_other(name: str) -> None:
    layer = layer_of(build_router(name, 8, 4), 8)
    h_BTD = tokens(3, 8, 8)
    together = layer(h_BTD).delta
    for row in range(3):
        alone = layer(h_BTD[row : row + 1]).delta
        torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", GROUP_ROUTERS)
def test_a_decoder_refuses_routers_that_see_the_whole_group(name: str) -> None:
    layer = layer_of(build_router(name, 8, 4), 8)
    with pytest.raises(UsageError, match="decoder"):
        layer(tokens(1, 4, 8), RouteContext(causal=True))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sinkhorn-tc:combine=both", "combine: expected"),
        ("softmax-ec:cf=0", "capacity factor"),
        ("softmax-ec:noise_std=-1", "noise_std"),
        ("soft:slots=0", "slots: expected 1 or more"),
        ("soft:tokens=0", "tokens: expected 1 or more"),
        ("soft:cf=nan:tokens=4", "capacity factor"),
    ],
)
def test_settings_out_of_range_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_router(spec, 8, 4)


@pytest.mark.parametrize("spec", ["sinkhorn-ec:eps=0", "sinkhorn-tc:iters=0", "sparse-ec:gamma=0"])
def test_solver_settings_out_of_range_are_refused_when_built(spec: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        build_router(spec, 8, 4)
