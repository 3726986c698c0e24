"""Thresholds found by cumulative sums are those found by trying every combination."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.core.preference import hull_quality_at, upper_hull
from crossroads.prompts.cascade import Cascade, calibrate, cascade_frontier, chains, fit_cascade

Instance = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def instances(draw: st.DrawFn, most_prompts: int = 7, models: int | None = None) -> Instance:
    """Scores, costs and acceptance, each (N, K); columns stand in order of cost."""
    n = draw(st.integers(1, most_prompts))
    k = models or draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    score = rng.integers(0, 3, (n, k)) / 2
    cost = np.sort(rng.uniform(0.1, 1.0, k)) * rng.uniform(0.5, 1.5, (n, k))
    acceptance = rng.integers(0, 4, (n, k)) / 4 if draw(st.booleans()) else rng.random((n, k))
    return score, cost, acceptance


def every_cascade(instance: Instance) -> Iterator[tuple[float, float, Cascade]]:
    """(cost, quality, cascade) for every combination of thresholds that differ in effect."""
    score, cost, acceptance = instance
    order = tuple(range(score.shape[1]))
    levels = [[*np.unique(acceptance[:, k]), np.inf] for k in order[:-1]]
    for thresholds in itertools.product(*levels):
        cascade = Cascade(order=order, thresholds=tuple(map(float, thresholds)))
        played = cascade.replay(acceptance, cost)
        quality = score[np.arange(len(score)), played.chosen_N].mean()
        yield float(played.cost_N.mean()), float(quality), cascade


@settings(deadline=None)
@given(instances(), st.floats(0, 1))
def test_the_cheapest_cascade_of_a_quality_is_that_of_brute_force(
    instance: Instance, share: float
) -> None:
    score, cost, acceptance = instance
    tried = list(every_cascade(instance))
    low, high = min(q for _, q, _ in tried), max(q for _, q, _ in tried)
    target = low + share * (high - low)
    found = fit_cascade(score, cost, acceptance, order=range(score.shape[1]), min_quality=target)
    assert found.quality >= target - 1e-9
    assert found.cost == pytest.approx(min(c for c, q, _ in tried if q >= target - 1e-12))


@settings(deadline=None)
@given(instances(), st.floats(0, 1))
def test_the_best_cascade_of_a_budget_is_that_of_brute_force(
    instance: Instance, share: float
) -> None:
    score, cost, acceptance = instance
    tried = list(every_cascade(instance))
    low, high = min(c for c, _, _ in tried), max(c for c, _, _ in tried)
    budget = low + share * (high - low)
    found = fit_cascade(score, cost, acceptance, order=range(score.shape[1]), max_usd=budget)
    assert found.cost <= budget * (1 + 1e-9)
    within = [q for c, q, _ in tried if c <= budget * (1 + 1e-12)]
    assert found.quality == pytest.approx(max(within))


@settings(deadline=None)
@given(instances(most_prompts=40), st.integers(0, 10**6))
def test_figures_are_those_of_a_replay(instance: Instance, cell: int) -> None:
    score, cost, acceptance = instance
    order = tuple(range(score.shape[1]))
    grid = calibrate._judge(score, cost, acceptance, order)
    found = grid.at(cell % len(grid.cost))
    played = found.cascade.replay(acceptance, cost)
    assert found.cost == pytest.approx(played.cost_N.mean())
    quality = score[np.arange(len(score)), played.chosen_N].mean()
    assert found.quality == pytest.approx(quality)


@settings(deadline=None)
@given(instances(most_prompts=30))
def test_two_models_are_exact_however_many_prompts(instance: Instance) -> None:
    score, cost, acceptance = instance
    if score.shape[1] < 2:
        score, cost, acceptance = (np.hstack([a, a]) for a in instance)
    pair = score[:, :2], cost[:, :2], acceptance[:, :2]
    tried = list(every_cascade(pair))
    hull = upper_hull([c for c, _, _ in tried], [q for _, q, _ in tried])
    frontier = cascade_frontier(*pair, orders=[(0, 1)])
    assert [f.cost for f in frontier] == pytest.approx(list(hull.cost))
    assert [f.quality for f in frontier] == pytest.approx(list(hull.quality))


def test_beyond_the_limit_quantiles_stand_for_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    score, acceptance = rng.random((300, 3)), rng.random((300, 3))
    cost = np.array([1.0, 2.0, 4.0])
    exact = fit_cascade(score, cost, acceptance, order=(0, 1, 2), max_usd=2.5)
    monkeypatch.setattr(calibrate, "MOST_CELLS", 100)
    coarse = fit_cascade(score, cost, acceptance, order=(0, 1, 2), max_usd=2.5)
    assert coarse.cost <= 2.5
    assert coarse.quality <= exact.quality
    assert len(calibrate._judge(score, cost, acceptance, (0, 1, 2)).cost) <= 100


@settings(deadline=None)
@given(instances(most_prompts=30))
def test_the_frontier_of_all_chains_holds_every_single_model(instance: Instance) -> None:
    score, cost, acceptance = instance
    orders = chains(cost.mean(axis=0), most_models=3)
    frontier = cascade_frontier(score, cost, acceptance, orders=orders)
    hull = upper_hull([f.cost for f in frontier], [f.quality for f in frontier])
    at_singles = hull_quality_at(hull, cost.mean(axis=0) * (1 + 1e-12))
    assert (at_singles >= score.mean(axis=0) - 1e-9).all()


def test_a_perfect_verifier_reaches_the_best_answer_there_is() -> None:
    score = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    found = fit_cascade(score, np.array([1.0, 9.0]), score, order=(0, 1), min_quality=0.75)
    assert found.quality == 0.75
    assert found.cost == pytest.approx(1.0 + 9.0 / 2)
    assert found.cascade.thresholds == (1.0,)


def test_chains_stand_in_order_of_cost() -> None:
    assert chains([3.0, 1.0, 2.0]) == [(1,), (2,), (0,), (1, 2), (1, 0), (2, 0)]
    assert chains([1.0, 2.0], most_models=9) == [(0,), (1,), (0, 1)]


@pytest.mark.parametrize(
    ("goal", "problem"),
    [
        ({"min_quality": 0.9}, r"no thresholds reach quality 0\.9, the best is 0\.5"),
        ({"max_usd": 0.5}, r"no thresholds cost at most 0\.5 USD a prompt, the least is 1;"),
    ],
)
def test_a_goal_out_of_reach_names_what_is_within(goal: dict[str, float], problem: str) -> None:
    score = np.array([[0.5, 0.0], [0.0, 0.5]])
    with pytest.raises(InputError, match=problem):
        fit_cascade(score, np.array([1.0, 2.0]), score, order=(0, 1), **goal)


def test_one_goal_is_asked_for() -> None:
    ones = np.ones((1, 1))
    for goal in ({}, {"min_quality": 0.5, "max_usd": 1.0}):
        with pytest.raises(UsageError, match="either min_quality or max_usd"):
            fit_cascade(ones, ones, ones, order=(0,), **goal)


def test_scores_that_are_missing_are_refused() -> None:
    ones = np.ones((2, 2))
    with pytest.raises(InputError, match="expected scores without NaN"):
        fit_cascade(np.full((2, 2), np.nan), ones, ones, order=(0, 1), max_usd=9.0)
    with pytest.raises(InputError, match="at least one order"):
        cascade_frontier(ones, ones, ones, orders=[])
