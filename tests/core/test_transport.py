from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from crossroads.core.errors import UsageError  # noqa: E402
from crossroads.core.transport import (  # noqa: E402
    column_plan,
    semi_dual,
    simplex_projection,
    sinkhorn_plan,
    sparse_plan,
)

Tensor = torch.Tensor
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def uniform(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers in [-3, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=dtype) * 6 - 3


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def everybody(cost_GSE: Tensor) -> Tensor:
    return torch.ones(cost_GSE.shape[:2], dtype=torch.bool)


# ---------------------------------------------------------------------------- Sinkhorn


def test_sinkhorn_of_the_worked_example() -> None:
    logits = torch.tensor([[[1, 0], [0, 0], [0, 1], [2, 0]]], dtype=torch.float64)
    expected = [[0.622459, 0.377541], [0.377541, 0.622459]]
    expected += [[0.182426, 0.817574], [0.817574, 0.182426]]
    plan = sinkhorn_plan(logits, iters=200)
    torch.testing.assert_close(plan[0], torch.tensor(expected).double(), atol=1e-6, rtol=0)


@few
@given(seed=seeds)
def test_twenty_iterations_meet_both_marginals(seed: int) -> None:
    plan = sinkhorn_plan(uniform(seed, 1, 64, 8))
    assert float((plan.sum(1) - 8).abs().max()) < 1e-5
    assert float((plan.sum(2) - 1).abs().max()) < 1e-4
    assert bool((plan >= 0).all())


@few
@given(seed=seeds, column=st.integers(0, 7), row=st.integers(0, 63), shift=st.floats(-5, 5))
def test_a_constant_on_a_column_or_row_leaves_the_plan_and_moves_the_softmax(
    seed: int, column: int, row: int, shift: float
) -> None:
    logits = uniform(seed, 1, 64, 8)
    plan = sinkhorn_plan(logits)
    moved = logits.clone()
    moved[:, :, column] += shift
    assert float((sinkhorn_plan(moved) - plan).abs().max()) < 1e-4
    tilted = logits.clone()
    tilted[:, row] += shift
    assert float((sinkhorn_plan(tilted) - plan).abs().max()) < 1e-4
    if abs(shift) > 0.1:
        assert float((moved.softmax(-1) - logits.softmax(-1)).abs().max()) > 1e-3


def test_single_precision_is_good_to_a_few_units_of_its_last_place() -> None:
    plan = sinkhorn_plan(uniform(0, 20, 64, 8, dtype=torch.float32))
    assert plan.dtype == torch.float32
    assert float((plan.sum(2) - 1).abs().max()) < 1e-5
    assert float((plan.sum(1) - 8).abs().max()) < 1e-4


def test_large_logits_do_not_overflow() -> None:
    plan = sinkhorn_plan(200 * uniform(0, 1, 16, 4, dtype=torch.float32))
    assert bool(torch.isfinite(plan).all())
    torch.testing.assert_close(plan.sum(1), torch.full((1, 4), 4.0))


@few
@given(seed=seeds, real=st.integers(1, 11))
def test_padded_rows_have_no_mass_and_leave_the_plan_of_the_others(seed: int, real: int) -> None:
    logits = uniform(seed, 1, 12, 4)
    mask = torch.arange(12).unsqueeze(0) < real
    padded = sinkhorn_plan(logits, mask)
    assert bool((padded[:, real:] == 0).all())
    torch.testing.assert_close(padded[:, :real], sinkhorn_plan(logits[:, :real]))


def test_a_group_without_real_tokens_gets_zeros_and_finite_gradients() -> None:
    logits = uniform(0, 2, 6, 3).requires_grad_()
    mask = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    plan = sinkhorn_plan(logits, mask)
    assert bool((plan[1] == 0).all())
    plan.square().sum().backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert bool((logits.grad[1] == 0).all())


def test_a_forbidden_pair_gets_no_mass_and_a_forbidden_expert_leaves_its_part_to_the_others() -> (
    None
):
    logits = uniform(0, 1, 12, 4)
    logits[0, 3, 1] = -torch.inf
    logits[0, :, 2] = -torch.inf
    logits.requires_grad_()
    plan = sinkhorn_plan(logits, iters=200)
    assert float(plan[0, 3, 1].detach()) == 0.0
    expected = torch.tensor([4.0, 4.0, 0.0, 4.0]).double()
    torch.testing.assert_close(plan[0].sum(0), expected)
    torch.testing.assert_close(plan[0].sum(1), torch.ones(12).double(), atol=1e-4, rtol=0)
    plan.square().sum().backward()
    assert bool(torch.isfinite(logits.grad).all())


def test_the_gradient_through_the_iterations_is_the_numerical_one() -> None:
    logits = uniform(0, 1, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sinkhorn_plan(z, iters=5), logits)


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"eps": float("nan")}, {"iters": 0}])
def test_sinkhorn_refuses_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="sinkhorn: expected"):
        sinkhorn_plan(torch.zeros(1, 2, 2), **wrong)


# ---------------------------------------------------------------------------- projections


@few
@given(seed=seeds, length=st.integers(1, 9), data=st.data())
def test_the_projection_is_on_the_simplex_and_no_feasible_point_is_nearer(
    seed: int, length: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, length))
    x = uniform(seed, length)
    nearest = simplex_projection(x, k)
    assert float(nearest.sum()) == pytest.approx(1.0)
    assert bool((nearest >= 0).all())
    assert int((nearest > 0).sum()) <= k
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = torch.zeros(length).double()
        support = torch.randperm(length, generator=generator)[:k]
        part = torch.rand(k, generator=generator, dtype=torch.float64) + 1e-9
        other[support] = part / part.sum()
        assert float((x - nearest).square().sum()) <= float((x - other).square().sum()) + 1e-12


def test_among_equals_the_lower_index_is_kept() -> None:
    assert simplex_projection(torch.zeros(4), 2).tolist() == [0.5, 0.5, 0.0, 0.0]


def test_entries_at_minus_infinity_and_a_bound_of_zero_get_nothing() -> None:
    x = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf] * 3])
    assert simplex_projection(x).tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    assert simplex_projection(torch.zeros(3), 0).tolist() == [0.0, 0.0, 0.0]


# ---------------------------------------------------------------------------- sparse transport


@few
@given(seed=seeds, k=st.sampled_from([8, 16, 64]))
def test_column_sums_and_sparsity_are_exact_after_any_number_of_steps(seed: int, k: int) -> None:
    for iters in (0, 20):
        plan, _ = sparse_plan(-normal(seed, 1, 64, 8).softmax(-1), k=k, iters=iters)
        assert float((plan.sum(1) - 8).abs().max()) < 1e-5
        assert int((plan > 0).sum(1).max()) <= k
        assert bool((plan >= 0).all())


@pytest.mark.parametrize(("draw", "tolerance"), [(uniform, 1e-3), (normal, 2e-2)])
def test_without_a_bound_the_row_sums_reach_one(draw: object, tolerance: float) -> None:
    cost = -draw(3, 5, 64, 8).softmax(-1)  # type: ignore[operator]
    after_20 = (sparse_plan(cost, k=64, iters=20)[0].sum(2) - 1).abs().max()
    after_500 = (sparse_plan(cost, k=64, iters=500)[0].sum(2) - 1).abs().max()
    assert float(after_20) < 0.06
    assert float(after_500) < tolerance


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_without_a_bound_the_plan_is_the_quadratic_transport_plan(gamma: float) -> None:
    """Its optimality: q = max(alpha_s - cost - beta_e, 0) / gamma for some beta, rows sum to 1."""
    cost = -uniform(1, 1, 12, 3).softmax(-1)
    plan, alpha = sparse_plan(cost, k=12, iters=1500, gamma=gamma)
    torch.testing.assert_close(
        plan.sum(2), torch.ones(1, 12).double(), atol=5e-3, rtol=0
    )  # Adam at a constant rate hovers
    level_SE = (alpha.unsqueeze(-1) - cost - gamma * plan)[0]
    for expert in range(3):
        served = plan[0, :, expert] > 0
        beta = level_SE[served, expert]
        torch.testing.assert_close(beta, beta[:1].expand_as(beta), atol=1e-9, rtol=0)
        assert bool((level_SE[~served, expert] <= beta[0] + 1e-9).all())


def test_a_tight_bound_leaves_tokens_unserved() -> None:
    """With k = S / E the relaxed dual has no exact primal; row sums are not asserted to be 1."""
    plan, _ = sparse_plan(-uniform(0, 10, 64, 8).softmax(-1), k=8, iters=20)
    unserved = (plan.sum(2) == 0).sum(1)
    assert bool((unserved >= 1).all())
    assert bool((unserved <= 16).all())


@few
@given(seed=seeds)
def test_twenty_steps_raise_the_semi_dual_where_the_bound_is_tight(seed: int) -> None:
    cost = -uniform(seed, 1, 64, 8).softmax(-1)
    mask, k = everybody(cost), torch.tensor([16])
    _, alpha = sparse_plan(cost, k=16, iters=20)
    start = semi_dual(torch.zeros_like(alpha), cost, mask, k)
    assert float(semi_dual(alpha, cost, mask, k)) > float(start)


def test_the_gradient_of_the_semi_dual_is_one_minus_the_row_sums() -> None:
    cost = -uniform(2, 2, 10, 3).softmax(-1)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 7:] = False
    k = torch.tensor([4, 3])
    alpha = (0.1 * normal(3, 2, 10)).requires_grad_()
    semi_dual(alpha, cost, mask, k).sum().backward()
    served = column_plan(alpha.detach(), cost, mask, k).sum(2)
    expected = torch.where(mask, 1 - served, 0.0)
    torch.testing.assert_close(alpha.grad, expected)


@few
@given(seed=seeds, real=st.integers(4, 11))
def test_padded_rows_stay_out_of_the_sparse_plan(seed: int, real: int) -> None:
    cost = -uniform(seed, 1, 12, 4).softmax(-1)
    mask = torch.arange(12).unsqueeze(0) < real
    k = torch.tensor([max(real // 4, 1)])
    padded, _ = sparse_plan(cost, mask, k=k)
    alone, _ = sparse_plan(cost[:, :real], k=k)
    assert bool((padded[:, real:] == 0).all())
    torch.testing.assert_close(padded[:, :real], alone)


def test_a_pair_of_infinite_cost_gets_no_mass() -> None:
    cost = -uniform(0, 1, 8, 2).softmax(-1)
    cost[0, 5, 1] = torch.inf
    plan, alpha = sparse_plan(cost, k=4)
    assert float(plan[0, 5, 1]) == 0.0
    assert bool(torch.isfinite(alpha).all())
    torch.testing.assert_close(plan.sum(1), torch.full((1, 2), 4.0).double())


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"lr": -1.0}, {"iters": -1}])
def test_the_sparse_plan_refuses_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="sparse plan: expected"):
        sparse_plan(torch.zeros(1, 2, 2), k=1, **wrong)
