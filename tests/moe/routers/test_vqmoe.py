from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import RouteContext
from crossroads.moe.contract import Branch, RouterOutput, TokenChoice
from crossroads.moe.routers.vqmoe import Codebook, VQMoE
from tests.moe.routers.inputs import layer_of, places, tokens, view

D, E = 6, 4


def started(**more: object) -> VQMoE:
    """A router whose codes are spread like tokens, in float64."""
    torch.manual_seed(0)
    router = VQMoE(D, E, **{"init_from_data": False, **more}).double()
    with torch.no_grad():
        router.codebook.codes.copy_(tokens(router.codebook.n_codes, D, seed=7))
    return router


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return tokens(*shape, seed=seed, dtype=torch.float64)


def branch(answer: RouterOutput, name: str) -> Branch:
    (found,) = (b for b in answer.decision.branches if b.name == name)
    return found


def code_of(router: VQMoE, x_BTD: Tensor) -> Tensor:
    code_N = router.decide(view(x_BTD)).decision.extra["code_N"]
    assert isinstance(code_N, Tensor)
    return code_N


def brute_force(x_ND: Tensor, codes_MD: Tensor) -> list[int]:
    found = []
    for x in x_ND:
        distances = [float((x - code).square().sum()) for code in codes_MD]
        found.append(distances.index(min(distances)))
    return found


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_every_token_gets_the_nearest_code_and_an_expert_that_exists(seed: int, m: int) -> None:
    router = started(n_codes=m)
    x_BTD = numbers(2, 5, D, seed=seed)
    answer = router.decide(view(x_BTD))
    code_N = answer.decision.extra["code_N"]
    codes_MD = router.codebook.codes.detach()
    assert code_N.tolist() == brute_force(x_BTD.reshape(-1, D), codes_MD)
    expert_N = branch(answer, "discrete").choice.idx_NK[:, 0]
    assert torch.equal(expert_N, code_N % E)
    assert int(expert_N.max()) < E


def test_each_half_of_the_codebook_loss_moves_one_side() -> None:
    rows, x = numbers(8, D).requires_grad_(), numbers(8, D, seed=1).requires_grad_()
    mask_N = torch.ones(8, dtype=torch.bool)
    book = Codebook(D, E, commit=0.25)
    grad_rows, grad_x = torch.autograd.grad(book.loss(rows, x, mask_N), [rows, x])
    gap = (rows - x).detach() * 2 / (8 * D)
    torch.testing.assert_close(grad_rows, gap)
    torch.testing.assert_close(grad_x, -0.25 * gap)


def test_the_codebook_loss_is_the_mean_over_tokens_and_width() -> None:
    router, x_BTD = started(), numbers(2, 5, D)
    term = router.decide(view(x_BTD, training=True)).aux["codebook"]
    rows_ND = router.codebook.codes.detach()[code_of(router, x_BTD)]
    expected = 1.25 * (rows_ND - x_BTD.reshape(-1, D)).square().mean()
    torch.testing.assert_close(term.value.detach(), expected)
    assert term.coefficient == 0.08


def test_padding_is_in_no_loss_and_a_batch_of_it_has_loss_zero() -> None:
    router, x_BTD = started(), numbers(2, 5, D)
    mask_BT = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    padded = router.decide(view(x_BTD, mask_BT=mask_BT, training=True)).aux["codebook"]
    real = router.decide(view(x_BTD[mask_BT].unsqueeze(0), training=True)).aux["codebook"]
    torch.testing.assert_close(padded.value, real.value)
    nothing = router.decide(view(x_BTD, mask_BT=mask_BT & False, training=True)).aux["codebook"]
    (grad,) = torch.autograd.grad(nothing.value, router.codebook.codes)
    assert (grad == 0).all()


def test_through_the_task_a_token_gets_one_minus_c_of_the_gradient_and_its_code_none() -> None:
    router = started(contribution=0.3)
    x_ND, code_ND = numbers(5, D).requires_grad_(), numbers(5, D, seed=1).requires_grad_()
    blended = router.blend(x_ND, code_ND)
    torch.testing.assert_close(blended, 0.7 * x_ND + 0.3 * code_ND)
    grad_x, grad_code = torch.autograd.grad(blended.sum(), [x_ND, code_ND], allow_unused=True)
    torch.testing.assert_close(grad_x, torch.full_like(x_ND, 0.7))
    assert grad_code is None


def test_the_published_blend_is_an_option_with_the_same_gradient() -> None:
    router = started(contribution=0.3, compat_blend=True)
    x_ND, code_ND = numbers(5, D).requires_grad_(), numbers(5, D, seed=1)
    blended = router.blend(x_ND, code_ND)
    torch.testing.assert_close(blended, 0.4 * x_ND + 0.3 * code_ND)
    (grad_x,) = torch.autograd.grad(blended.sum(), x_ND)
    torch.testing.assert_close(grad_x, torch.full_like(x_ND, 0.7))


def test_the_layer_adds_both_branches_by_their_gates() -> None:
    router, x_BTD = started(), numbers(2, 5, D)
    layer = layer_of(router, D).double()
    answer = layer(x_BTD)
    x_ND = x_BTD.reshape(-1, D)
    gates_N2 = torch.softmax(router.branch_gate(x_ND), -1)
    rows_ED = torch.nn.functional.normalize(router.gate.weight, dim=-1)
    probs_NE = torch.softmax(x_ND @ rows_ED.T, -1)
    best_N, code_N = probs_NE.argmax(-1), code_of(router, x_BTD)
    expected = []
    for n, x in enumerate(x_ND):
        linear = probs_NE[n, best_N[n]] * layer.experts.expert(int(best_N[n]), x[None])[0]
        blended = 0.95 * x + 0.05 * router.codebook.codes[code_N[n]]
        coded = layer.experts.expert(int(code_N[n]) % E, router.norm(blended)[None])[0]
        expected.append(gates_N2[n, 0] * linear + gates_N2[n, 1] * router.norm(coded))
    torch.testing.assert_close(answer.delta.reshape(-1, D), torch.stack(expected))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31))
def test_no_noise_within_the_certified_radius_changes_the_code(seed: int) -> None:
    router = started(n_codes=6)
    x_ND = numbers(10, D, seed=seed)
    codes_MD = router.codebook.codes.detach()
    radius_N1 = router.certified_radius(x_ND).unsqueeze(-1)
    code_N = code_of(router, x_ND[None])
    random_ND = torch.nn.functional.normalize(numbers(10, D, seed=seed + 1), dim=-1)
    others_NMD = codes_MD - codes_MD[code_N].unsqueeze(1)
    worst_NMD = torch.nn.functional.normalize(others_NMD, dim=-1)
    for direction in (random_ND, *worst_NMD.unbind(1)):
        moved = x_ND + (1 - 1e-6) * radius_N1 * direction
        assert torch.equal(router.codebook.nearest(moved, codes_MD), code_N)
    # The certificate is exact: a step beyond it towards the nearest border changes every code.
    beyond = [
        router.codebook.nearest(x_ND + (1 + 1e-6) * radius_N1 * direction, codes_MD) != code_N
        for direction in worst_NMD.unbind(1)
    ]
    assert torch.stack(beyond).any(0).all()


def test_equal_codes_have_no_border_between_them() -> None:
    router, x_ND = started(n_codes=6), numbers(10, D)
    with torch.no_grad():
        router.codebook.codes[5] = router.codebook.codes[0]
    alone = started(n_codes=5)
    with torch.no_grad():
        alone.codebook.codes.copy_(router.codebook.codes[:5])
    assert torch.equal(router.certified_radius(x_ND), alone.certified_radius(x_ND))


def test_the_discrete_branch_alone_needs_neither_gate_nor_second_call() -> None:
    router = started(branches="discrete")
    answer = router.decide(view(numbers(2, 5, D), training=True))
    (only,) = answer.decision.branches
    assert only.name == "discrete"
    assert (only.gate_N1 == 1).all()
    assert set(answer.aux) == {"codebook"}
    assert router.nominal_active == 1.0
    assert started().nominal_active == 2.0


def test_the_continuous_branch_alone_is_plain_token_choice() -> None:
    router = started(branches="continuous", k=2)
    answer = router.decide(view(numbers(2, 5, D), training=True))
    idx_NK, w_NK = places(answer.decision)
    probs_NE = answer.decision.probs_NE
    assert probs_NE is not None
    torch.testing.assert_close(w_NK, probs_NE.gather(-1, idx_NK))
    assert set(answer.aux) == {"balance"}


def test_the_linear_gate_starts_orthogonal_and_is_trained_by_weight_and_balance() -> None:
    router, x_BTD = started(), numbers(2, 5, D)
    gram = router.gate.weight @ router.gate.weight.T
    torch.testing.assert_close(
        gram, 0.32**2 * torch.eye(E, dtype=gram.dtype), atol=1e-6, rtol=0, check_dtype=False
    )
    answer = router.decide(view(x_BTD, training=True))
    w_NK = branch(answer, "continuous").choice.w_NK
    for trained_by in (w_NK.sum(), answer.aux["balance"].value):
        (grad,) = torch.autograd.grad(trained_by, router.gate.weight, retain_graph=True)
        assert float(grad.abs().max()) > 1e-6


def test_the_balance_loss_is_on_sharpened_probabilities() -> None:
    router, x_BTD = started(), numbers(2, 5, D)
    answer = router.decide(view(x_BTD, training=True))
    logits_NE = answer.decision.logits_NE
    assert logits_NE is not None
    choice = branch(answer, "continuous").choice
    f_E = torch.bincount(choice.idx_NK[:, 0], minlength=E) / 10
    expected = E * (f_E * torch.softmax(logits_NE / 0.3, -1).mean(0)).sum()
    torch.testing.assert_close(answer.aux["balance"].value, expected)


def test_the_published_frozen_gate_is_an_option() -> None:
    router = started(compat_frozen_gate=True)
    answer = router.decide(view(numbers(2, 5, D), training=True))
    assert "balance" not in answer.aux
    assert (branch(answer, "continuous").choice.w_NK == 1).all()
    assert not router.gate.weight.requires_grad


def test_loads_add_up_over_branches_and_padding_is_in_none() -> None:
    router = started()
    mask_BT = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    x_BTD = torch.where(mask_BT.unsqueeze(-1), numbers(2, 5, D), torch.nan)
    clean = torch.where(mask_BT.unsqueeze(-1), x_BTD, 0.0)
    decision = router.decide(view(clean, mask_BT=mask_BT)).decision
    assert float(decision.stats["count_E"].sum()) == 14
    assert float(decision.stats["count_M"].sum()) == 7
    for part in decision.branches:
        assert (part.choice.idx_NK.reshape(2, 5)[~mask_BT] == -1).all()
        assert (part.gate_N1.reshape(2, 5)[~mask_BT] == 0).all()
    delta = layer_of(router, D).double()(x_BTD, RouteContext(mask_BT=mask_BT)).delta
    assert (delta[~mask_BT] == 0).all()
    assert bool(torch.isfinite(delta).all())


def test_the_first_batch_gives_the_codes_and_already_goes_by_them() -> None:
    router = started(init_from_data=True)
    before = router.codebook.codes.clone()
    x_BTD = numbers(2, 5, D)
    answer = router.decide(view(x_BTD, training=True))
    assert torch.equal(router.codebook.codes, before)  # a forward pass writes nothing
    codes_MD = answer.new_state["codes"]
    x_ND = x_BTD.reshape(-1, D)
    assert all((x_ND == code).all(-1).any() for code in codes_MD)
    assert len(codes_MD.unique(dim=0)) == E
    assert answer.decision.extra["code_N"].tolist() == brute_force(x_ND, codes_MD)
    router.commit(answer.decision.stats, answer.new_state)
    assert torch.equal(router.codebook.codes, codes_MD)
    later = router.decide(view(numbers(2, 5, D, seed=1), training=True))
    assert later.new_state == {}
    assert router.decide(view(x_BTD)).new_state == {}


def test_fewer_tokens_than_codes_still_start_them() -> None:
    router = started(init_from_data=True, n_codes=9)
    answer = router.decide(view(numbers(1, 2, D), training=True))
    assert answer.new_state["codes"].shape == (9, D)


def test_a_cosine_codebook_goes_by_direction_alone() -> None:
    router, x_BTD = started(codebook="cosine"), numbers(2, 5, D)
    scale_BT1 = numbers(2, 5, 1, seed=3).exp()
    assert torch.equal(code_of(router, x_BTD), code_of(router, scale_BT1 * x_BTD))
    x_ND = x_BTD.reshape(-1, D)
    codes_MD = router.codebook.codes.detach()
    cosine_NM = torch.cosine_similarity(x_ND.unsqueeze(1), codes_MD, dim=-1)
    assert torch.equal(code_of(router, x_BTD), cosine_NM.argmax(-1))
    rows = router.codebook.scaled(codes_MD[:1].expand(10, -1), x_ND)
    torch.testing.assert_close(rows.norm(dim=-1), x_ND.norm(dim=-1))
    with pytest.raises(UsageError, match="l2"):
        router.certified_radius(x_ND)


def test_a_radius_is_of_finite_tokens_of_the_codes_width() -> None:
    router = started()
    for wrong, message in (
        (numbers(3, D + 1), r"tokens: expected shape \(N, "),
        (numbers(D), "tokens: expected shape"),
        (numbers(3, D) * float("nan"), "tokens: expected finite numbers"),
    ):
        with pytest.raises(InputError, match=message):
            router.certified_radius(wrong)


def test_a_balanced_codebook_draws_unused_codes_to_tokens_and_leaves_used_ones() -> None:
    router = started(codebook="balanced")
    book = router.codebook
    book.usage_M.copy_(torch.tensor([0.5, 0.5, 0.0, 0.0]))
    before = book.codes.detach().clone()
    x_BTD = numbers(2, 5, D)
    answer = router.decide(view(x_BTD, training=True))
    revived_MD = answer.new_state["revived"]
    assert all((x_BTD.reshape(-1, D) == row).all(-1).any() for row in revived_MD)
    router.commit({"count_M": torch.tensor([6.0, 4.0, 0.0, 0.0])}, answer.new_state)
    expected = 0.99 * torch.tensor([0.5, 0.5, 0, 0]) + 0.01 * torch.tensor([0.6, 0.4, 0, 0])
    torch.testing.assert_close(book.usage_M, expected, check_dtype=False)
    part_M1 = torch.exp(-book.usage_M * E * 10 / 0.01 - 1e-3).unsqueeze(-1)
    torch.testing.assert_close(book.codes.detach(), (1 - part_M1) * before + part_M1 * revived_MD)
    assert torch.equal(book.codes.detach()[:2], before[:2])
    assert float((book.codes.detach()[2:] - revived_MD[2:]).abs().max()) < 0.01


def test_revived_codes_are_drawn_among_the_tokens_and_not_the_nearest() -> None:
    router, x_BTD = started(codebook="balanced"), numbers(2, 50, D)

    def revived(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return router.decide(view(x_BTD, training=True, rng=rng)).new_state["revived"]

    assert torch.equal(revived(1), revived(1))
    assert not torch.equal(revived(1), revived(2))


def test_a_forbidden_expert_closes_its_codes_and_without_any_the_token_passes() -> None:
    router, x_BTD = started(n_codes=8), numbers(2, 5, D)
    allow = torch.tensor([[False, True, True, False], [False] * 4])
    answer = router.decide(view(x_BTD, allow=allow))
    idx_BT = branch(answer, "discrete").choice.idx_NK.reshape(2, 5)
    assert set(idx_BT[0].tolist()) <= {1, 2}
    assert (idx_BT[1] == -1).all()


def test_settings_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="branches"):
        VQMoE(D, E, branches="neither")
    with pytest.raises(UsageError, match="contribution"):
        VQMoE(D, E, contribution=1.5)
    with pytest.raises(UsageError, match="n_codes"):
        VQMoE(D, E, codebook="balanced", n_codes=5)
    with pytest.raises(UsageError, match="codebook"):
        VQMoE(D, E, codebook="l1")
    with pytest.raises(UsageError, match="n_codes"):
        VQMoE(D, E, n_codes=0)


def test_both_branches_are_token_choices_of_one_place_each() -> None:
    answer = started().decide(view(numbers(2, 5, D)))
    assert answer.decision.choice is None
    assert [b.name for b in answer.decision.branches] == ["continuous", "discrete"]
    for choice in answer.decision.choices:
        assert isinstance(choice, TokenChoice)
        assert choice.idx_NK.shape == (10, 1)


def test_the_codebook_loss_is_the_pull_both_ways_with_its_gradients() -> None:
    book = started(commit=0.4).codebook
    rows, x = numbers(9, D, seed=1).requires_grad_(), numbers(9, D, seed=2).requires_grad_()
    mask_N = torch.arange(9) < 7
    mse = torch.nn.functional.mse_loss
    plain = mse(rows[:7], x[:7].detach()) + 0.4 * mse(x[:7], rows[:7].detach())
    value = book.loss(rows, x, mask_N)
    torch.testing.assert_close(value, plain)
    wanted = torch.autograd.grad(3 * plain, (rows, x), retain_graph=True)
    found = torch.autograd.grad(3 * value, (rows, x), retain_graph=True)
    torch.testing.assert_close(found, wanted)
    twice = []
    for loss in (value, plain):
        slopes = torch.autograd.grad(loss, (rows, x), create_graph=True)
        twice.append(torch.autograd.grad(sum(slope.pow(3).sum() for slope in slopes), (rows, x)))
    torch.testing.assert_close(*twice)


@pytest.mark.parametrize("codebook", ["l2", "cosine"])
def test_one_product_gives_what_gate_branches_and_codes_give_alone(codebook: str) -> None:
    router = started(codebook=codebook)
    inp = view(numbers(2, 5, D))
    found = router.quantise(inp)
    torch.testing.assert_close(found.score_NE, router.score(inp))
    torch.testing.assert_close(found.gate_N2, router.branch_gate(inp.x_ND))
    assert torch.equal(found.code_N, router.codebook.nearest(inp.x_ND, router.codebook.codes))


def test_the_usage_of_a_half_precision_model_is_averaged_in_float32() -> None:
    half, whole = Codebook(D, E, kind="balanced").bfloat16(), Codebook(D, E, kind="balanced")
    for _ in range(300):
        for book in (half, whole):
            book.commit(torch.tensor([10.0, 1.0, 1.0, 0.0]), {})
    assert half.codes.dtype == torch.bfloat16
    assert torch.equal(half.usage_M, whole.usage_M)
