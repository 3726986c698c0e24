from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from crossroads.core.errors import InputError  # noqa: E402
from crossroads.core.gating import (  # noqa: E402
    entropy,
    first_maximum,
    renyi_entropy,
    softmax,
    squared_cv,
    top_k,
    top_p,
    tsallis_entropy,
)

few = settings(max_examples=30, deadline=None)
# Few distinct values, so that ties are common.
rows = st.lists(st.integers(-2, 2), min_size=1, max_size=7)


def descending_then_lower_index(row: list[int]) -> list[int]:
    return sorted(range(len(row)), key=lambda index: (-row[index], index))


@few
@given(row=rows, data=st.data())
def test_top_k_is_the_sorted_prefix_with_ties_to_the_lower_index(
    row: list[int], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(row)))
    chosen = top_k(torch.tensor([row], dtype=torch.float32), k)[0].tolist()
    assert chosen == descending_then_lower_index(row)[:k]


@few
@given(row=rows)
def test_first_maximum_agrees_with_top_1(row: list[int]) -> None:
    assert int(first_maximum(torch.tensor(row).float())) == descending_then_lower_index(row)[0]


def test_top_k_along_another_axis_picks_columns() -> None:
    scores = torch.tensor([[1.0, 5.0], [1.0, 7.0], [3.0, 5.0]])
    assert top_k(scores, 2, dim=0).tolist() == [[2, 1], [0, 0]]


@pytest.mark.parametrize("k", [0, 4])
def test_top_k_refuses_a_k_that_does_not_fit(k: int) -> None:
    with pytest.raises(InputError, match="k: expected between 1 and 3"):
        top_k(torch.zeros(2, 3), k)


def test_half_precision_is_normalised_in_float32_and_double_stays_double() -> None:
    assert softmax(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert softmax(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_a_closed_row_has_no_probability_and_no_gradient() -> None:
    logits = torch.tensor([[-torch.inf, -torch.inf], [0.0, 1.0]], requires_grad=True)
    probs = softmax(logits)
    assert probs[0].tolist() == [0.0, 0.0]
    probs.square().sum().backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert logits.grad[0].tolist() == [0.0, 0.0]


def test_top_p_of_the_worked_example() -> None:
    idx, keep = top_p(torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]]), 0.4)
    assert sorted(idx[keep].tolist()) == [2, 4]
    uniform = torch.full((1, 16), 1 / 16)
    assert int(top_p(uniform, 0.4)[1].sum()) == 7
    assert int(top_p(uniform, 0.4, k_max=3)[1].sum()) == 3


def test_top_p_asks_for_strictly_more_than_p() -> None:
    halves = torch.tensor([[0.5, 0.25, 0.25]])  # sums without rounding
    counts = [int(top_p(halves, p)[1].sum()) for p in (0.49, 0.5, 0.75)]
    assert counts == [1, 2, 3]


@few
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    p=st.floats(0.0, 1.2, allow_nan=False),
)
def test_top_p_keeps_the_smallest_prefix_above_p(weights: list[int], p: float) -> None:
    probs = torch.tensor([weights], dtype=torch.float64) / sum(weights)
    idx, keep = top_p(probs, p)
    kept = int(keep.sum())
    ordered = probs[0][idx[0]]
    assert keep[0, :kept].all()
    before = float(ordered[: kept - 1].sum())
    assert before <= p + 1e-12
    assert kept == len(weights) or float(ordered[:kept].sum()) > p - 1e-12


def test_entropy_of_uniform_and_certain_rows() -> None:
    assert float(entropy(torch.full((4,), 0.25))) == pytest.approx(1.3862944)
    assert float(entropy(torch.tensor([1.0, 0.0]))) == 0.0


def test_a_probability_of_zero_adds_no_gradient_to_the_entropy() -> None:
    closed = torch.tensor([[-torch.inf, 0.0, 1.0]], requires_grad=True)
    far = torch.tensor([[-200.0, 0.0, 1.0]], requires_grad=True)  # exp(-201) is 0 in float32
    two = torch.tensor([[0.0, 1.0]], requires_grad=True)
    for logits in (closed, far, two):
        entropy(softmax(logits)).sum().backward()
    for logits in (closed, far):
        assert logits.grad[0, 0] == 0
        torch.testing.assert_close(logits.grad[:, 1:], two.grad)
    assert bool(torch.isnan(entropy(torch.tensor([torch.nan, 1.0]))))


def test_squared_cv_is_population_variance_over_squared_mean() -> None:
    assert float(squared_cv(torch.tensor([1.0, 3.0]))) == pytest.approx(0.25)
    assert float(squared_cv(torch.zeros(3))) == 0.0


@few
@given(
    seed=st.integers(0, 10_000),
    n_experts=st.sampled_from([1, 2, 8, 17, 64]),
    k=st.integers(1, 4),
    closed=st.booleans(),
    many=st.booleans(),
)
def test_the_k_best_are_those_of_a_stable_sort(
    seed: int, n_experts: int, k: int, closed: bool, many: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (5000 if many else 40, n_experts), generator=rng).float()
    if closed:
        scores[torch.rand(scores.shape, generator=rng) < 0.6] = -torch.inf
    k = min(k, n_experts)
    wanted = torch.argsort(scores, dim=-1, descending=True, stable=True)[:, :k]
    assert torch.equal(top_k(scores, k), wanted)


@few
@given(seed=st.integers(0, 10_000), n=st.sampled_from([1, 3, 700]), k=st.integers(1, 4))
def test_different_scores_are_chosen_alike_whatever_their_number(seed: int, n: int, k: int) -> None:
    scores = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    wanted = torch.argsort(scores, dim=-1, descending=True, stable=True)[:, :k]
    assert torch.equal(top_k(scores, k), wanted)


def test_a_few_rows_are_normalised_like_many() -> None:
    inf = math.inf
    rows = torch.tensor([[1.0, 3.0, -inf], [-inf, -inf, -inf], [200.0, -200.0, 0.0]])
    for few in (rows, rows[::2]):
        many = few.repeat(2000, 1)
        torch.testing.assert_close(softmax(few), softmax(many)[: len(few)])
        torch.testing.assert_close(softmax(few.t(), 0), softmax(many)[: len(few)].t())
    assert softmax(rows)[1].tolist() == [0.0, 0.0, 0.0]
    rows[0, 0] = math.nan
    assert softmax(rows)[0].isnan().all() and softmax(rows)[1:].isfinite().all()


def test_a_few_scores_need_no_number_read_back() -> None:
    scores = torch.randn(5, 20, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.func.vmap(softmax)(scores), softmax(scores))
    chosen = torch.func.vmap(lambda row: top_k(row, 2))(scores)
    assert torch.equal(chosen, top_k(scores, 2))
    assert top_k(scores, 2).is_contiguous()


def test_few_scores_with_nan_or_ties_are_chosen_like_many() -> None:
    nan, inf = math.nan, math.inf
    few = torch.tensor([[1.0, 3.0, 3.0, -inf], [-inf, -inf, -inf, inf], [0.0, -0.0, -1.0, -1.0]])
    for scores in (few, torch.tensor([[1.0, nan, 2.0, nan]])):
        many = scores.repeat(2000, 1)
        for k in (1, 2, 3):
            assert torch.equal(top_k(scores, k), top_k(many, k)[: len(scores)])


@few
@given(seed=st.integers(0, 10_000), n_experts=st.integers(1, 20), shift=st.floats(-200, 200))
def test_the_softmax_and_its_gradient_are_those_of_torch(
    seed: int, n_experts: int, shift: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(6, n_experts, generator=rng, dtype=torch.float64) + shift
    weight = torch.randn(logits.shape, generator=rng, dtype=torch.float64)
    found = []
    for normalise in (softmax, lambda x: torch.softmax(x, -1)):
        x = logits.clone().requires_grad_()
        probs = normalise(x)
        (gradient,) = torch.autograd.grad((probs * weight).sum(), x)
        found.append((probs.detach(), gradient))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [2, 6, 64])
@pytest.mark.parametrize("q", [0.5, 1.0, 1.1, 2.0])
def test_one_certain_choice_has_entropy_0_and_equal_ones_1(n: int, q: float) -> None:
    certain = torch.nn.functional.one_hot(torch.tensor(0), n).float()
    uniform = torch.full((n,), 1 / n)
    tolerance = 1e-6 if q >= 1 else 1e-3 * n  # below 1 the clamp at 1e-9 itself weighs 3e-5 each
    for uncertainty in (tsallis_entropy, renyi_entropy):
        assert float(uncertainty(certain, q)) == pytest.approx(0.0, abs=tolerance)
        assert float(uncertainty(uniform, q)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("n", [4, 16, 64])
def test_near_order_1_tsallis_and_renyi_are_shannons(n: int) -> None:
    probs = torch.randn(50, n, generator=torch.Generator().manual_seed(n)).softmax(-1)
    shannon = -(probs * probs.log()).sum(-1) / math.log(n)
    for uncertainty in (tsallis_entropy, renyi_entropy):
        assert (uncertainty(probs, 1.001) - shannon).abs().max() < 2e-3
        torch.testing.assert_close(uncertainty(probs, 1.0), shannon)
    assert (tsallis_entropy(probs, 1.001) - shannon).abs().max() < 1e-3


@few
@given(seed=st.integers(0, 200), share=st.floats(0.05, 0.95))
def test_mixing_with_equal_shares_raises_tsallis_entropy(seed: int, share: float) -> None:
    probs = torch.randn(6, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)
    mixed = (1 - share) * probs + share / 6
    assert tsallis_entropy(mixed, 1.1) >= tsallis_entropy(probs, 1.1) - 1e-6
