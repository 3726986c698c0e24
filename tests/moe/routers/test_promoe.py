from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import RouteContext
from crossroads.moe.contract import ExpertChoice, RouterInput
from crossroads.moe.routers.promoe import ProMoE, contrastive_loss
from tests.moe.routers.inputs import layer_of, places, tokens, value, view

D, E = 6, 5  # four routed experts and the unconditional one
NULL = torch.tensor([False, True, False])


def made(**more: object) -> ProMoE:
    torch.manual_seed(0)
    return ProMoE(D, E, **more).double()


def images(x_BTD: Tensor | None = None, **fields: object) -> RouterInput:
    x_BTD = tokens(3, 8, D, dtype=torch.float64) if x_BTD is None else x_BTD
    return view(x_BTD, **{"cond": {"null": NULL}, **fields})


def slots_of(router: ProMoE, inp: RouterInput) -> ExpertChoice:
    choice = router.decide(inp).decision.choice
    assert isinstance(choice, ExpertChoice)
    return choice


def test_conditional_tokens_go_to_the_nearest_prototype_weighted_by_its_cosine() -> None:
    router, inp = made(), images()
    idx_NK, w_NK = places(router.decide(inp).decision)
    cosine_NE = torch.cosine_similarity(inp.x_ND.unsqueeze(1), router.prototypes, dim=-1)
    routed_N = ~NULL.repeat_interleave(8)
    assert torch.equal(idx_NK[routed_N, 0], cosine_NE.argmax(-1)[routed_N])
    torch.testing.assert_close(w_NK[routed_N, 0], cosine_NE.amax(-1)[routed_N])


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_the_score_map_changes_weights_and_not_the_choice(score: str) -> None:
    inp = images()
    plain, mapped = made(k=2).decide(inp).decision, made(k=2, score=score).decide(inp).decision
    assert torch.equal(places(plain)[0], places(mapped)[0])
    logits_NE = plain.logits_NE
    assert logits_NE is not None
    map_ = torch.sigmoid if score == "sigmoid" else lambda s: torch.softmax(s, -1)
    routed_N = ~NULL.repeat_interleave(8)
    expected = map_(logits_NE).gather(-1, places(plain)[0].clamp_min(0))
    torch.testing.assert_close(places(mapped)[1][routed_N], expected[routed_N])
    assert plain.weights == "signed"
    assert mapped.weights == "unnormalised"


@pytest.mark.parametrize("choice", ["token", "expert"])
def test_null_sequences_run_the_unconditional_expert_alone_and_move_no_prototype(
    choice: str,
) -> None:
    router, inp = made(choice=choice, k=2), images()
    answer = router.decide(inp)
    decision = answer.decision
    if choice == "token":
        idx_NK, w_NK = places(decision)
        assert (idx_NK[8:16] == torch.tensor([E - 1, -1])).all()
        assert (w_NK[8:16] == torch.tensor([1.0, 0.0])).all()
        assert (idx_NK[:8] < E - 1).all()
    else:
        found = slots_of(router, inp)
        assert found.tok_GEC[1, -1].tolist() == list(range(8))
        assert (found.w_GEC[1, -1] == 1).all()
        assert (found.tok_GEC[1, :-1] == -1).all()
        assert (found.tok_GEC[[0, 2], -1] == -1).all()
    assert float(decision.stats["count_E"][-1]) == 0
    assert float(decision.stats["count_E"].sum()) == 2 * 2 * 8
    moved = inp.x_BTD.clone()
    moved[1] = 3 * tokens(8, D, seed=5).double()
    grads = []
    for x_BTD in (inp.x_BTD, moved):
        layer = layer_of(router, D).double()
        router.zero_grad()
        given = RouteContext(training=True, cond={"null": NULL})
        answer_L = layer(x_BTD, given)
        loss = answer_L.delta.square().sum() + answer_L.aux["contrastive"].value
        loss.backward()
        grads.append(router.prototypes.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])
    assert float(grads[0].abs().max()) > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["token", "expert"]))
def test_lengths_of_tokens_and_prototypes_do_not_matter(seed: int, choice: str) -> None:
    router, scaled = made(choice=choice), made(choice=choice)
    stretch = tokens(4, 1, seed=seed).double().exp()
    scaled.prototypes.data.mul_(stretch)
    x_BTD = tokens(3, 8, D, seed=seed, dtype=torch.float64)
    longer = x_BTD * tokens(3, 8, 1, seed=seed + 1).double().exp()
    first = router.decide(images(x_BTD)).decision.choice
    second = scaled.decide(images(longer)).decision.choice
    for field in ("idx_NK", "w_NK") if choice == "token" else ("tok_GEC", "w_GEC"):
        torch.testing.assert_close(getattr(first, field), getattr(second, field))


def test_a_sequence_is_decided_the_same_alone_and_in_a_batch() -> None:
    inp = images()
    for choice in ("token", "expert"):
        router = made(choice=choice)
        layer = layer_of(router, D).double()
        together = layer(inp.x_BTD, RouteContext(cond={"null": NULL})).delta
        for row in range(3):
            one = slice(row, row + 1)
            alone = layer(inp.x_BTD[one], RouteContext(cond={"null": NULL[one]})).delta
            torch.testing.assert_close(alone, together[one])


# ---------------------------------------------------------------- the contrastive loss


def all_to(count: int, n_routed: int) -> Tensor:
    """Token i of ``count`` belongs to expert i, (1, S, R)."""
    return torch.eye(count, n_routed, dtype=torch.bool).unsqueeze(0)


def test_the_worked_example_is_half_of_ln_2() -> None:
    prototypes = torch.eye(2, dtype=torch.float64)
    means = torch.tensor([[[1.0, 1], [-1, 1]]], dtype=torch.float64)
    loss = contrastive_loss(prototypes, means, all_to(2, 2), 0.07)
    assert float(loss) == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_the_loss_has_the_gradient_it_seems_to_have() -> None:
    prototypes = tokens(3, 2, dtype=torch.float64).requires_grad_()
    h_GSD = tokens(2, 4, 2, seed=1, dtype=torch.float64).requires_grad_()
    member = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    assert torch.autograd.gradcheck(
        lambda p, h: contrastive_loss(p, h, member, 0.3), (prototypes, h_GSD)
    )


def test_with_equal_cosines_it_is_the_log_of_live_experts_and_falls_towards_the_mean() -> None:
    prototypes = torch.ones(4, 3, dtype=torch.float64)
    h_GSD = torch.eye(3, dtype=torch.float64).unsqueeze(0)
    member = all_to(3, 4)  # the fourth expert has no token
    start = contrastive_loss(prototypes, h_GSD, member, 0.07)
    assert float(start) == pytest.approx(math.log(3))
    moved = prototypes.clone()
    moved[1] += 0.1 * h_GSD[0, 1]
    assert float(contrastive_loss(moved, h_GSD, member, 0.07)) < float(start)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_a_small_step_down_its_gradient_lowers_it(seed: int) -> None:
    prototypes = tokens(4, D, seed=seed, dtype=torch.float64).requires_grad_()
    h_GSD = tokens(1, 12, D, seed=seed + 1, dtype=torch.float64)
    member = torch.nn.functional.one_hot(torch.arange(12) % 4, 4).bool().unsqueeze(0)
    loss = contrastive_loss(prototypes, h_GSD, member, 0.07)
    (grad,) = torch.autograd.grad(loss, prototypes)
    lower = contrastive_loss(prototypes - 1e-5 * grad, h_GSD, member, 0.07)
    assert float(lower.detach()) <= float(loss.detach())


def test_fewer_than_two_live_experts_give_zero_with_gradient_zero() -> None:
    prototypes = tokens(3, D).requires_grad_()
    for live in (0, 1):
        member = torch.zeros(1, 4, 3, dtype=torch.bool)
        member[0, :live, 1] = True
        loss = contrastive_loss(prototypes, tokens(1, 4, D, seed=1), member, 0.07)
        (grad,) = torch.autograd.grad(loss, prototypes)
        assert float(loss.detach()) == 0
        assert (grad == 0).all()


@pytest.mark.parametrize("choice", ["token", "expert"])
def test_a_batch_without_any_condition_has_loss_zero(choice: str) -> None:
    router = made(choice=choice)
    null_B = torch.ones(3, dtype=torch.bool)
    answer = router.decide(images(training=True, cond={"null": null_B}))
    assert value(answer.aux["contrastive"]) == 0
    answer.aux["contrastive"].value.backward()
    assert (router.prototypes.grad == 0).all()
    assert float(answer.decision.stats["count_E"].sum()) == 0


def test_means_are_over_the_batch_for_tokens_and_per_image_for_experts() -> None:
    inp = images(training=True)
    token, expert = made(), made(choice="expert")
    idx_NK, _ = places(token.decide(inp).decision)
    member = torch.nn.functional.one_hot(idx_NK[:, 0], E)[:, :4].bool()
    expected = contrastive_loss(token.prototypes, inp.x_ND[None], member[None], 0.07)
    found = token.decide(inp).aux["contrastive"]
    torch.testing.assert_close(found.value, expected)
    assert found.coefficient == 1.0
    tok_GEC = slots_of(expert, inp).tok_GEC
    losses = []
    for image in (0, 2):
        member = torch.zeros(1, 8, 4, dtype=torch.bool)
        for e in range(4):
            chosen = tok_GEC[image, e]
            member[0, chosen[chosen >= 0], e] = True
        losses.append(contrastive_loss(expert.prototypes, inp.x_BTD[[image]], member, 0.07))
    torch.testing.assert_close(expert.decide(inp).aux["contrastive"].value, sum(losses) / 2)


# ---------------------------------------------------------------- experts that choose


@pytest.mark.parametrize(("k", "length", "expected"), [(1, 8, 2), (3, 8, 6), (1, 3, 1), (4, 5, 5)])
def test_each_expert_takes_exactly_k_tokens_of_every_image(
    k: int, length: int, expected: int
) -> None:
    router = made(choice="expert", k=k)
    inp = images(tokens(3, length, D, dtype=torch.float64))
    choice = slots_of(router, inp)
    counts = (choice.tok_GEC >= 0).sum(-1)
    assert (counts[[0, 2], :4] == expected).all()
    cosine_BET = torch.einsum(
        "btd,ed->bet",
        torch.nn.functional.normalize(inp.x_BTD, dim=-1),
        torch.nn.functional.normalize(router.prototypes.detach(), dim=-1),
    )
    best = cosine_BET.argsort(dim=-1, descending=True, stable=True)[..., :expected]
    assert torch.equal(choice.tok_GEC[[0, 2], :4, :expected], best[[0, 2]])
    torch.testing.assert_close(
        choice.w_GEC[[0, 2], :4, :expected].detach(), cosine_BET.gather(-1, best)[[0, 2]]
    )


def test_a_forced_token_is_first_in_the_queue_of_its_expert() -> None:
    force_BT = torch.full((3, 8), -1)
    force_BT[0] = torch.tensor([-1, -1, -1, 1, -1, -1, -1, -1])
    router = made(choice="expert")
    assert slots_of(router, images(training=True, force_BT=force_BT)).tok_GEC[0, 1, 0] == 3
    free = slots_of(router, images(force_BT=force_BT))
    assert torch.equal(free.tok_GEC, slots_of(router, images()).tok_GEC)


def test_padding_is_never_chosen_and_shrinks_the_share() -> None:
    mask_BT = torch.ones(3, 8, dtype=torch.bool)
    mask_BT[0, 5:] = False
    mask_BT[1, :2] = False
    inp = images(mask_BT=mask_BT)
    choice = slots_of(made(choice="expert", k=2), inp)
    counts = (choice.tok_GEC >= 0).sum(-1)
    assert counts[:, :4].tolist() == [[2] * 4, [0] * 4, [4] * 4]
    assert set(choice.tok_GEC[1, -1].tolist()) - {-1} == {2, 3, 4, 5, 6, 7}
    assert int(choice.tok_GEC[0].max()) < 5


def test_the_softmax_of_experts_that_choose_runs_over_tokens() -> None:
    inp = images()
    choice = slots_of(made(choice="expert", score="softmax", k=4), inp)
    torch.testing.assert_close(
        choice.w_GEC[0, :4].sum(-1), torch.ones(4, dtype=torch.float64)
    )  # k = T, so every token of the softmax is there


def test_experts_that_choose_are_refused_in_a_decoder() -> None:
    router = made(choice="expert")
    assert not router.causal_safe
    assert made().causal_safe
    with pytest.raises(UsageError, match="choice"):
        router.decide(images(causal=True))


# ---------------------------------------------------------------- conditions and settings


def test_the_null_label_is_a_setting() -> None:
    router = made(null_label=10)
    assert router.needs == {"cond:label"}
    by_label = router.decide(images(cond={"label": torch.tensor([3, 10, 0])})).decision
    by_flag = made().decide(images()).decision
    assert torch.equal(places(by_label)[0], places(by_flag)[0])


def test_without_an_unconditional_expert_every_token_is_routed_and_nothing_is_read() -> None:
    router = ProMoE(D, 4, uncond=False)
    assert router.needs == frozenset()
    idx_NK, _ = places(router.decide(view(tokens(3, 8, D))).decision)
    assert (idx_NK >= 0).all()
    assert router.n_routed == 4


def test_a_missing_or_misshapen_condition_is_refused() -> None:
    with pytest.raises(InputError, match=r"cond\['null'\]"):
        made().decide(images(cond={}))
    with pytest.raises(InputError, match="expected bool of shape"):
        made().decide(images(cond={"null": torch.zeros(3)}))
    with pytest.raises(InputError, match="expected bool of shape"):
        made().decide(images(cond={"null": torch.zeros(2, dtype=torch.bool)}))
    with pytest.raises(InputError, match=r"expected a bool tensor of shape .*, got list"):
        made().decide(images(cond={"null": [True, False, False]}))  # type: ignore[dict-item]


@pytest.mark.parametrize("choice", ["token", "expert"])
def test_the_unconditional_expert_cannot_be_forced(choice: str) -> None:
    force_BT = torch.full((3, 8), -1)
    force_BT[0, 2] = E - 1
    with pytest.raises(InputError, match="force: expected experts below 4"):
        made(choice=choice).decide(images(training=True, force_BT=force_BT))


def test_settings_out_of_range_are_refused_by_name() -> None:
    for wrong, match in (
        ({"k": 5}, "k: expected 1 to 4"),
        ({"score": "tanh"}, "score"),
        ({"choice": "image"}, "choice"),
        ({"tau": 0.0}, "tau"),
    ):
        with pytest.raises(UsageError, match=match):
            ProMoE(D, E, **wrong)
    with pytest.raises(UsageError, match="'promoe' needs at least 2 experts"):
        ProMoE(D, 1)


def test_a_switch_balance_on_conditional_tokens_is_an_option() -> None:
    answer = made(balance=0.01).decide(images(training=True))
    decision = answer.decision
    probs_NE = decision.probs_NE
    assert probs_NE is not None
    routed_N = ~NULL.repeat_interleave(8)
    f_E = decision.stats["count_E"] / 16
    expected = 4 * (f_E * probs_NE[routed_N].mean(0)).sum()
    torch.testing.assert_close(answer.aux["balance"].value, expected)
    assert set(made().decide(images(training=True)).aux) == {"contrastive"}


def test_prototypes_start_small_and_one_shared_expert_is_part_of_the_method() -> None:
    torch.manual_seed(0)
    router = ProMoE(200, 13)
    assert router.prototypes.shape == (12, 200)
    assert float(router.prototypes.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert ProMoE.shared_experts == 1
    assert router.nominal_active == 1.0


def test_an_image_with_one_live_expert_is_left_out_of_the_mean() -> None:
    prototypes, h_GSD = tokens(2, D, seed=3), tokens(2, 4, D, seed=4)
    member = torch.zeros(2, 4, 2, dtype=torch.bool)
    member[0, :2, 0] = member[0, 2:, 1] = True
    member[1, :, 1] = True  # nothing to tell apart
    both = contrastive_loss(prototypes, h_GSD, member, 0.07)
    alone = contrastive_loss(prototypes, h_GSD[:1], member[:1], 0.07)
    assert float(alone) > 0
    torch.testing.assert_close(both, alone)
