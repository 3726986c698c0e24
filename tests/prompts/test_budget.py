"""The budget over a stream: exact against enumeration and linear programming, paced online."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.budget import (
    PacedBudget,
    SpendCurve,
    decide,
    expected_spend,
    fit_budget,
    prompt_draws,
    spend_curve,
)
from crossroads.prompts.decide import Budget, BudgetRule, MaxCost, Tradeoff, parse_rule
from crossroads.prompts.outcomes import prompt_hash, unit_hash
from crossroads.prompts.router import Queries

Problem = tuple[np.ndarray, np.ndarray]


@st.composite
def problems(draw: st.DrawFn, most_prompts: int = 30, most_models: int = 5) -> Problem:
    """Quality (N, K) and positive cost (N, K); coarse half of the time, so that ties happen."""
    shape = draw(st.integers(1, most_prompts)), draw(st.integers(1, most_models))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        return rng.integers(0, 5, shape) / 4, rng.integers(1, 5, shape) * 1e-4
    return rng.random(shape), rng.uniform(1e-4, 1e-2, shape)


def affordable(cost: np.ndarray, share: float) -> float:
    """A budget between what the cheapest and what the dearest choices cost."""
    low, high = cost.min(axis=1).mean(), cost.max(axis=1).mean()
    return float(low + share * (high - low))


def expected_quality(rule: BudgetRule, quality: np.ndarray, cost: np.ndarray) -> float:
    """The mean quality of a call over the rule's random draws."""
    low, high = (mean_at(side, quality) for side in rule.sides(quality, cost))
    return (1 - rule.share) * low + rule.share * high


def mean_at(choice: np.ndarray, value: np.ndarray) -> float:
    return float(value[np.arange(len(choice)), choice].mean())


def linear_optimum(quality: np.ndarray, cost: np.ndarray, usd: float) -> float:
    from scipy.optimize import linprog

    n, k = quality.shape
    rows = np.kron(np.eye(n), np.ones(k))
    found = linprog(
        -quality.ravel() / n,
        A_ub=cost.ravel()[None] / n / cost.max(),
        b_ub=[usd * (1 + 1e-9) / cost.max()],
        A_eq=rows,
        b_eq=np.ones(n),
    )
    return float(-found.fun)


@settings(deadline=None)
@given(problems(), st.floats(0, 1))
def test_the_spend_meets_the_budget_within_one_percent_in_expectation(
    problem: Problem, share: float
) -> None:
    quality, cost = problem
    usd = affordable(cost, share)
    rule = fit_budget(quality, cost, usd)
    spend = expected_spend(rule, quality, cost)
    greedy = Tradeoff(0.0).choose(quality, cost)
    most = cost[np.arange(len(cost)), greedy].mean()
    assert spend == pytest.approx(min(usd, most), rel=1e-2)
    assert spend <= usd * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(problems(most_prompts=8, most_models=4), st.floats(0, 1))
def test_it_is_the_optimum_of_the_linear_relaxation(problem: Problem, share: float) -> None:
    quality, cost = problem
    usd = affordable(cost, share)
    rule = fit_budget(quality, cost, usd)
    best = linear_optimum(quality, cost, usd)
    assert expected_quality(rule, quality, cost) == pytest.approx(best, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(problems(most_prompts=5, most_models=3), st.floats(0, 1))
def test_no_assignment_within_the_budget_is_better(problem: Problem, share: float) -> None:
    quality, cost = problem
    usd = affordable(cost, share)
    n, k = quality.shape
    rows = np.arange(n)
    within = [
        quality[rows, list(choice)].mean()
        for choice in itertools.product(range(k), repeat=n)
        if cost[rows, list(choice)].mean() <= usd
    ]
    rule = fit_budget(quality, cost, usd)
    assert expected_quality(rule, quality, cost) >= max(within, default=0.0) - 1e-7


@settings(deadline=None)
@given(problems(), st.floats(0, 1))
def test_both_sides_of_the_mix_bracket_the_budget(problem: Problem, share: float) -> None:
    quality, cost = problem
    usd = affordable(cost, share)
    rule = fit_budget(quality, cost, usd)
    rows = np.arange(len(cost))
    low, high = (cost[rows, side].mean() for side in rule.sides(quality, cost))
    assert high <= usd * (1 + 1e-9)
    assert low >= high
    assert rule.low_price <= rule.high_price


@settings(deadline=None)
@given(problems(), st.lists(st.floats(0, 1e5), min_size=2, max_size=6))
def test_a_sweep_of_lambda_never_falls_in_predicted_terms(
    problem: Problem, prices: list[float]
) -> None:
    quality, cost = problem
    rows = np.arange(len(cost))
    points = []
    for price in sorted(prices, reverse=True):
        choice = Tradeoff(price).choose(quality, cost)
        points.append((cost[rows, choice].mean(), quality[rows, choice].mean()))
    spends, qualities = np.array(points).T
    assert (np.diff(spends) >= -1e-12).all()
    assert (np.diff(qualities) >= -1e-9).all()


@settings(deadline=None)
@given(problems(), st.floats(1e-5, 1e-2))
def test_a_query_within_its_budget_is_found_whenever_there_is_one(
    problem: Problem, usd: float
) -> None:
    quality, cost = problem
    paid = cost[np.arange(len(cost)), MaxCost(usd).choose(quality, cost)]
    assert ((paid <= usd) == (cost <= usd).any(axis=1)).all()


@settings(deadline=None)
@given(problems(), st.floats(0, 1), st.integers(2, 40))
def test_a_kept_curve_meets_any_budget_too(problem: Problem, share: float, points: int) -> None:
    quality, cost = problem
    usd = affordable(cost, share)
    curve = SpendCurve.from_rows(spend_curve(quality, cost, points=points).to_rows())
    rule = curve.rule(usd)
    spend = expected_spend(rule, quality, cost)
    assert spend == pytest.approx(min(usd, curve.usd[0]), rel=1e-9)
    exact = fit_budget(quality, cost, usd)
    best = expected_quality(exact, quality, cost)
    assert expected_quality(rule, quality, cost) <= best + 1e-7


def test_one_best_model_is_mixed_with_one_cheaper_one() -> None:
    quality = np.tile([0.4, 0.5, 0.7], (100, 1))
    cost = np.array([0.001, 0.004, 0.005])
    rule = fit_budget(quality, cost, 0.003)
    low, high = rule.sides(quality, cost)
    assert set(low) == {2}
    assert set(high) == {0}
    assert rule.share == pytest.approx(0.5)


def test_draws_decide_which_side_and_how_often() -> None:
    quality = np.tile([0.4, 0.7], (4, 1))
    cost = np.array([1.0, 2.0])
    rule = fit_budget(quality, cost, 1.25)
    assert rule.choose(quality, cost, np.array([0.0, 0.74, 0.76, 0.99])).tolist() == [0, 0, 1, 1]
    assert rule.propensity(quality, cost, np.array([0, 1, 0, 1])) == pytest.approx(
        [0.75, 0.25, 0.75, 0.25]
    )
    assert (rule.choose(quality, cost) == rule.choose(quality, cost)).all()


def test_the_realised_spend_of_many_draws_is_near_the_budget() -> None:
    quality = np.tile([0.4, 0.7], (20_000, 1))
    cost = np.array([1.0, 2.0])
    rule = fit_budget(quality, cost, 1.3)
    asked = Queries(
        embeddings=np.arange(20_000, dtype=np.float32)[:, None],
    )
    choice = rule.choose(quality, cost, prompt_draws(asked, seed=1))
    # Five standard errors of a mean of 20,000 draws with deviation sqrt(.3 * .7) = .46.
    assert cost[choice].mean() == pytest.approx(1.3, abs=0.017)


def test_a_prompt_draws_the_same_in_every_batch_and_apart_from_the_split() -> None:
    texts = np.array([f"question {n}" for n in range(4000)], dtype=object)
    asked = Queries(embeddings=np.zeros((4000, 1), dtype=np.float32), texts=texts)
    draws = prompt_draws(asked, seed=3)
    one = Queries(embeddings=asked.embeddings[7:8], texts=texts[7:8])
    assert prompt_draws(one, seed=3)[0] == draws[7]
    assert (prompt_draws(asked, seed=4) != draws).mean() > 0.99
    split = unit_hash(np.array([prompt_hash(t) for t in texts], dtype=np.uint64), 3)
    # A correlation of independent draws has a standard error of 1 / sqrt(4000) = .016.
    assert abs(np.corrcoef(draws, split)[0, 1]) < 0.08
    assert ((draws >= 0) & (draws < 1)).all()


def test_recorded_costs_can_measure_the_spend() -> None:
    rng = np.random.default_rng(0)
    quality = rng.random((500, 2))
    cost = np.array([1.0, 3.0])
    spent = cost * rng.uniform(0.9, 1.5, (500, 2))
    rule = fit_budget(quality, cost, 2.0, spent_NK=spent)
    assert expected_spend(rule, quality, cost, spent_NK=spent) == pytest.approx(2.0, rel=1e-9)
    assert expected_spend(rule, quality, cost) < 2.0


def test_a_generous_budget_is_plain_argmax_and_free_models_need_none() -> None:
    quality = np.array([[0.1, 0.9], [0.8, 0.2]])
    assert fit_budget(quality, np.array([1.0, 2.0]), 50.0).share == 0.0
    free = fit_budget(quality, np.zeros(2), 0.0)
    assert free.choose(quality, np.zeros(2)).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("usd", "quality", "cost", "problem"),
    [
        (0.5, [[0.1, 0.9]], [1.0, 2.0], "less than the cheapest choice costs, 1 USD"),
        (-1.0, [[0.1, 0.9]], [1.0, 2.0], "expected USD per call >= 0, got -1.0"),
        (float("nan"), [[0.1, 0.9]], [1.0, 2.0], "expected USD per call >= 0, got nan"),
        (1.0, [[0.1, np.nan]], [1.0, 2.0], "hold NaN or infinity"),
        (1.0, [[0.1, 0.9]], [1.0, np.inf], "hold NaN or infinity"),
        (1.0, [[0.1, 0.9]], [-1.0, 2.0], "a cost is negative"),
        (1.0, [[0.1, 0.9]], [1.0, 2.0, 3.0], "costs of shape (3,)"),
        (1.0, [], [1.0], "expected estimates of shape (N, K)"),
    ],
)
def test_what_cannot_be_kept_is_refused_on_one_line(
    usd: float, quality: list[list[float]], cost: list[float], problem: str
) -> None:
    with pytest.raises(InputError) as caught:
        fit_budget(np.array(quality), np.array(cost), usd)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.floats(0, 1e3), st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1))
def test_a_calibrated_rule_reads_back_from_its_text(
    usd: float, one: float, other: float, share: float
) -> None:
    rule = BudgetRule(usd, min(one, other), max(one, other), share)
    assert parse_rule(str(rule)) == rule


def test_a_budget_alone_is_a_wish_that_asks_to_be_calibrated() -> None:
    rule = parse_rule("budget:0.001")
    assert rule == Budget(0.001)
    with pytest.raises(UsageError, match=r"'budget:0\.001' is not calibrated"):
        rule.choose(np.ones((1, 2)), np.ones(2))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("budget", "expected budget:NUMBER"),
        ("budget:1:2", "expected budget:USD, or budget:USD:LOW:HIGH:SHARE"),
        ("budget:1:2:3:x", "expected budget:USD, or budget:USD:LOW:HIGH:SHARE"),
        ("budget:1:3:2:0.5", "expected low price <= high price"),
        ("budget:1:2:3:1.5", "share <= 1"),
        ("budget:-1", "expected a number >= 0"),
    ],
)
def test_a_wrong_budget_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_rule(text)


@pytest.mark.parametrize(
    "rows", [[], [[1.0, 2.0]], [[0.0, 1.0], [1.0, 1.0]], [[0, 1, 2]], "no", [[0.0, float("nan")]]]
)
def test_an_altered_curve_is_refused(rows: list[list[float]]) -> None:
    with pytest.raises(InputError, match="fit again"):
        SpendCurve.from_rows(rows)


def test_a_curve_refuses_what_is_below_its_end() -> None:
    curve = SpendCurve.from_rows([[0.0, 2.0], [10.0, 1.0]])
    assert curve.rule(1.0).share == 1.0
    assert curve.rule(1.5) == BudgetRule(1.5, 0.0, 10.0, 0.5)
    with pytest.raises(InputError, match=r"0\.9 USD a call is less than the cheapest"):
        curve.rule(0.9)


def test_a_finer_curve_comes_closer_to_the_best_quality() -> None:
    rng = np.random.default_rng(0)
    quality, cost = rng.random((400, 5)), rng.uniform(1e-4, 1e-2, 5)
    usd = affordable(np.tile(cost, (400, 1)), 0.3)
    best = expected_quality(fit_budget(quality, cost, usd), quality, cost)
    rules = [spend_curve(quality, cost, points=points).rule(usd) for points in (4, 64)]
    coarse, fine = (expected_quality(rule, quality, cost) for rule in rules)
    assert coarse < fine <= best
    assert fine == pytest.approx(best, abs=1e-3)


def test_deciding_reports_how_likely_each_choice_was() -> None:
    quality, cost = np.tile([0.4, 0.7], (50, 1)), np.array([1.0, 2.0])
    asked = Queries(embeddings=np.arange(50, dtype=np.float32)[:, None])
    rule = fit_budget(quality, cost, 1.25)
    choice, probability = decide(rule, quality, cost, asked, seed=5)
    assert set(choice) == {0, 1}
    assert probability == pytest.approx(np.where(choice == 0, 0.75, 0.25))
    assert (decide(rule, quality, cost, asked, seed=5)[0] == choice).all()
    choice, probability = decide(Tradeoff(0.0), quality, cost, asked)
    assert (choice == 1).all()
    assert (probability == 1).all()


@settings(deadline=None)
@given(
    problems(most_prompts=60),
    st.floats(0, 1),
    st.floats(1e-3, 1.0),
    st.floats(0, 5),
)
def test_a_paced_stream_keeps_both_of_its_bounds(
    problem: Problem, share: float, step: float, start: float
) -> None:
    """The bounds of the class docstring, on any order of any prompts."""
    quality, cost = problem
    least = cost.min(axis=1).max()  # every call has a choice within this budget
    budget = float(least + share * (cost.max() - least))
    paced = PacedBudget(usd_per_call=budget, step=step, price=start / budget)
    gained, excess = 0.0, 0.0
    for quality_K, cost_K in zip(quality, cost, strict=True):
        k = paced.choose(quality_K, cost_K)
        paced.paid(float(cost_K[k]))
        gained += quality_K[k]
        excess += (cost_K[k] / budget - 1) ** 2
    calls = len(quality)
    overrun = budget * (paced.price * budget - start) / step
    assert paced.spent_usd <= calls * budget + overrun + 1e-9
    rival = quality[np.arange(calls), MaxCost(budget).choose(quality, cost)].sum()
    assert gained >= rival - start**2 / (2 * step) - step / 2 * excess - 1e-9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pacing_a_long_stream_comes_close_to_the_best_fixed_policy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    calls, step = 5000, 0.02
    cost = np.array([1.0, 2.0, 8.0])
    quality = rng.uniform(0, 1, (calls, 3)) * 0.3 + np.array([0.3, 0.4, 0.6])
    paced = PacedBudget(usd_per_call=3.0, step=step)
    gained = 0.0
    for quality_K in quality:
        k = paced.choose(quality_K, cost)
        paced.paid(float(cost[k]))
        gained += quality_K[k]
    best = expected_quality(fit_budget(quality, cost, 3.0), quality, cost)
    # The bounds: S / 2 * max (x - 1)^2 of regret a call, and B * m / (S T) of overspending.
    assert gained / calls >= best - step / 2 * (8 / 3 - 1) ** 2 - 3 / np.sqrt(calls)
    assert paced.spent_usd / calls <= 3.0 * (1 + paced.price * 3.0 / (step * calls)) + 1e-9


def test_the_price_rises_when_calls_are_dear_and_falls_to_zero_when_cheap() -> None:
    paced = PacedBudget(usd_per_call=2.0, step=0.1)
    paced.paid(6.0)
    assert paced.price == pytest.approx(0.1)
    for _ in range(10):
        paced.paid(0.0)
    assert paced.price == 0.0


@pytest.mark.parametrize(
    "values", [{"usd_per_call": 0.0}, {"step": -1.0}, {"price": float("nan")}, {"price": -1.0}]
)
def test_wrong_settings_of_pacing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match="paced budget: expected"):
        PacedBudget(**{"usd_per_call": 1.0, **values})


def test_a_cost_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="expected the cost of a call >= 0, got nan"):
        PacedBudget(usd_per_call=1.0).paid(float("nan"))
