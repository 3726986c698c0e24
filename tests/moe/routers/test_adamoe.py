from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.errors import UsageError
from crossroads.core.losses import switch_balance
from crossroads.moe.routers.adamoe import AdaMoE, null_balance
from crossroads.moe.routers.top2 import Top2
from tests.moe.routers.inputs import layer_of, places, tokens, value, view, with_logits

GOLDEN = torch.tensor(
    [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.35, 0.3, 0.1]], dtype=torch.float64
)


def golden(**more: object) -> tuple[AdaMoE, Tensor]:
    router = AdaMoE(3, 2, n_null=2, k=2, **more)
    return router, with_logits(router, GOLDEN.log())


def test_true_weights_of_the_worked_example_are_over_true_picks() -> None:
    router, x_BTD = golden()
    idx_NK, w_NK = places(router.decide(view(x_BTD)).decision)
    assert idx_NK.tolist() == [[0, 1], [3, 2], [1, 2]]
    expected = torch.tensor([[0.571429, 0.428571], [0, 0], [1, 0]], dtype=torch.float64)
    torch.testing.assert_close(w_NK, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("third", "plain"), [([1, 2], 1.033333), ([1, 3], 0.988889)])
def test_the_loss_of_the_worked_example_does_not_ask_which_null_was_picked(
    third: list[int], plain: float
) -> None:
    idx_NK = torch.tensor([[0, 1], [3, 2], third])
    mask_N = torch.ones(3, dtype=torch.bool)
    found = null_balance(GOLDEN, idx_NK, mask_N, n_true=2)
    assert float(found) == pytest.approx(1.011111, abs=1e-6)
    assert float(switch_balance(GOLDEN, idx_NK, mask_N)) == pytest.approx(plain, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4))
def test_redistributing_null_picks_among_nulls_leaves_the_loss(
    seed: int, n_true: int, n_null: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    total = n_true + n_null
    probs_NE = torch.softmax(torch.randn(20, total, generator=rng, dtype=torch.float64), -1)
    idx_NK = torch.randint(total, (20, 2), generator=rng)
    other_null = n_true + torch.randint(n_null, idx_NK.shape, generator=rng)
    moved_NK = torch.where(idx_NK >= n_true, other_null, idx_NK)
    mask_N = torch.ones(20, dtype=torch.bool)
    first = null_balance(probs_NE, idx_NK, mask_N, n_true=n_true)
    second = null_balance(probs_NE, moved_NK, mask_N, n_true=n_true)
    torch.testing.assert_close(first, second)


def test_descending_the_loss_raises_nulls_that_are_picked_too_rarely() -> None:
    logits_NE = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    idx_NK = torch.tensor([[0, 1]] * 5 + [[0, 2]])
    loss = null_balance(
        torch.softmax(logits_NE, -1), idx_NK, torch.ones(6, dtype=torch.bool), n_true=2
    )
    (grad_NE,) = torch.autograd.grad(loss, logits_NE)
    assert (grad_NE[:, 2:] < 0).all()


def test_without_nulls_it_is_top_k_renormalised() -> None:
    x_BTD = tokens(2, 9, 6)
    torch.manual_seed(0)
    ada = AdaMoE(6, 5, n_null=0, k=2)
    torch.manual_seed(0)
    top = Top2(6, 5)
    first, second = (
        places(ada.decide(view(x_BTD)).decision),
        places(top.decide(view(x_BTD)).decision),
    )
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[1], second[1])


def test_nulls_at_minus_infinity_are_as_good_as_none() -> None:
    x_BTD = tokens(2, 9, 6)
    with_nulls = AdaMoE(6, 5, n_null=3, k=2)
    without = AdaMoE(6, 5, n_null=0, k=2)
    without.gate.weight.data.copy_(with_nulls.gate.weight[:5])
    allow = torch.arange(8) < 5
    closed = places(with_nulls.decide(view(x_BTD, allow=allow)).decision)
    plain = places(without.decide(view(x_BTD)).decision)
    assert torch.equal(closed[0], plain[0])
    torch.testing.assert_close(closed[1], plain[1])


def test_a_token_of_nulls_alone_runs_nothing_and_adds_exactly_zero() -> None:
    router, x_BTD = golden()
    answer = layer_of(router, 3).double()(x_BTD)
    assert (answer.delta[0, 1] == 0).all()
    assert (answer.delta[0, [0, 2]] != 0).any()


def test_null_picks_have_no_weight_without_renormalising_either() -> None:
    router, x_BTD = golden(renorm=False)
    idx_NK, w_NK = places(router.decide(view(x_BTD)).decision)
    assert idx_NK.tolist() == [[0, 1], [3, 2], [1, 2]]
    expected = torch.tensor([[0.4, 0.3], [0, 0], [0.35, 0]], dtype=torch.float64)
    torch.testing.assert_close(w_NK, expected)


def test_operations_count_true_picks_alone() -> None:
    router = AdaMoE(6, 4, n_null=4, k=3)
    layer, x_BTD = layer_of(router, 6), tokens(2, 9, 6)
    answer = layer(x_BTD)
    idx_NK, _ = places(answer.decisions[0])
    n_true_picks = int((idx_NK < 4).sum())
    assert 0 < n_true_picks < idx_NK.numel()
    one = layer.experts.flops_E(9)[0]
    assert answer.flops == pytest.approx(float(one * n_true_picks + router.router_flops(18)))


def test_null_rows_get_no_task_gradient_and_a_single_true_pick_none_either() -> None:
    torch.manual_seed(0)
    router = AdaMoE(6, 3, n_null=5, k=3).double()
    x_BTD = tokens(2, 40, 6, dtype=torch.float64)
    idx_NK, w_NK = places(router.decide(view(x_BTD)).decision)
    (grad,) = torch.autograd.grad((w_NK * tokens(80, 3, seed=3).double()).sum(), router.gate.weight)
    assert float(grad[3:].abs().max()) < 1e-12
    assert float(grad[:3].abs().max()) > 1e-3
    single_N = (idx_NK < 3).sum(-1) == 1
    assert bool(single_N.any())
    one = x_BTD.reshape(-1, 6)[single_N].unsqueeze(0)
    _, w_NK = places(router.decide(view(one)).decision)
    weighted = (w_NK * tokens(*w_NK.shape, seed=4).double()).sum()
    (grad,) = torch.autograd.grad(weighted, router.gate.weight)
    assert (grad == 0).all()


def test_mean_true_picks_of_a_random_router_are_near_the_budget() -> None:
    means = []
    for seed in range(20):
        torch.manual_seed(seed)
        router = AdaMoE(64, 8, n_null=8, k=4)
        idx_NK, _ = places(router.decide(view(tokens(1, 2000, 64, seed=seed))).decision)
        means.append(float((idx_NK < 8).sum(-1).double().mean()))
    assert router.nominal_active == 2.0
    assert sum(means) / len(means) == pytest.approx(2.0, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(0, 5), st.data())
def test_true_picks_stay_between_their_bounds(
    seed: int, n_true: int, n_null: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n_true + n_null))
    torch.manual_seed(seed)
    router = AdaMoE(6, n_true, n_null=n_null, k=k)
    idx_NK, w_NK = places(router.decide(view(tokens(1, 20, 6, seed=seed))).decision)
    picks_N = (idx_NK < n_true).sum(-1)
    assert int(picks_N.min()) >= max(0, k - n_null)
    assert int(picks_N.max()) <= min(k, n_true)
    assert (w_NK[idx_NK >= n_true] == 0).all()
    torch.testing.assert_close(w_NK.sum(-1), (picks_N > 0).float())


def test_copied_null_rows_leave_each_true_pick_its_copies() -> None:
    router = AdaMoE(6, 4, k=6, init="copy")  # m = 8: two copies of every true row
    assert torch.equal(router.gate.weight[4:8], router.gate.weight[:4])
    assert torch.equal(router.gate.weight[8:], router.gate.weight[:4])
    idx_NK, _ = places(router.decide(view(tokens(1, 30, 6))).decision)
    assert ((idx_NK < 4).sum(-1) == 2).all()


def test_the_coefficient_falls_to_zero_unless_it_is_constant() -> None:
    router, x_BTD = golden()
    for progress in (0.0, 0.25, 1.0):
        term = router.decide(view(x_BTD, training=True, progress=progress)).aux["balance"]
        assert term.coefficient == pytest.approx(1e-3 * (1 - progress))
        assert value(term) == pytest.approx(1.011111, abs=1e-6)
    constant, x_BTD = golden(anneal="constant")
    term = constant.decide(view(x_BTD, training=True, progress=1.0)).aux["balance"]
    assert term.coefficient == 1e-3


def test_the_published_plain_balance_is_an_option() -> None:
    router, x_BTD = golden(compat_plain_balance=True)
    term = router.decide(view(x_BTD, training=True)).aux["balance"]
    assert value(term) == pytest.approx(1.033333, abs=1e-6)
    per_token, x_BTD = golden(f_norm="tokens")
    term = per_token.decide(view(x_BTD, training=True)).aux["balance"]
    assert value(term) == pytest.approx(2 * 1.011111, abs=2e-6)


def test_padding_is_in_neither_loads_nor_losses() -> None:
    router, x_BTD = golden()
    padded = torch.cat([x_BTD, 9 * tokens(1, 2, 3).double()], 1)
    mask_BT = torch.tensor([[True] * 3 + [False] * 2])
    answer = router.decide(view(padded, mask_BT=mask_BT, training=True))
    assert value(answer.aux["balance"]) == pytest.approx(1.011111, abs=1e-6)
    assert answer.decision.stats["count_E"].tolist() == [1, 2, 2, 1]


def test_capacity_never_loses_a_null_pick() -> None:
    router = AdaMoE(6, 2, n_null=2, k=2, capacity=0.3)
    choice = router.decide(view(tokens(1, 40, 6), training=True)).decision.choice
    assert choice.dropped_NK is not None
    assert bool(choice.dropped_NK.any())
    assert not bool((choice.dropped_NK & (choice.idx_NK >= 2)).any())


def test_the_default_budget_is_two_true_experts() -> None:
    router = AdaMoE(6, 8)
    assert (router.n_experts, router.k, router.nominal_active) == (24, 6, 2.0)
    assert router.kinds == ("ffn",) * 8 + ("null",) * 16
    assert AdaMoE(6, 1).k == 3
    with pytest.raises(UsageError, match="n_null"):
        AdaMoE(6, 2, n_null=-1)
    with pytest.raises(UsageError, match="anneal"):
        AdaMoE(6, 2, anneal="cosine")
