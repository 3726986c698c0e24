"""Figures of a routing: golden rows, identities, and a slow, obvious reference for each curve."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.core.preference import upper_hull
from crossroads.prompts.decide import Argmax, Tradeoff
from crossroads.prompts.metrics import (
    apgr,
    arena_score,
    chosen_values,
    cpt,
    gap_recovered,
    regret,
    relative_cost_at_quality,
    tradeoff_curve,
)

GOLDEN = json.loads(
    Path(__file__).parents[1].joinpath("golden/routerarena_leaderboard.json").read_text("utf-8")
)


@pytest.mark.parametrize(("accuracy", "cost", "score"), GOLDEN["rows"])
def test_the_arena_score_reproduces_the_public_leaderboard(
    accuracy: float, cost: float, score: float
) -> None:
    assert 100 * arena_score(accuracy / 100, cost) == pytest.approx(score, abs=GOLDEN["tolerance"])


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.005, 190), st.floats(0.005, 190))
def test_the_arena_score_rises_with_accuracy_and_falls_with_cost(
    a: float, b: float, c: float, d: float
) -> None:
    assert arena_score(max(a, b), min(c, d)) >= arena_score(min(a, b), max(c, d))
    if abs(a - b) > 1e-6:
        assert arena_score(max(a, b), c) > arena_score(min(a, b), c)


def test_the_arena_score_is_clipped_outside_its_cost_range() -> None:
    assert arena_score(0.7, 0.001) == arena_score(0.7, 0.0044)
    # At the cheap end C is 1: the harmonic mean of A and 1, weighted 1 to 0.1.
    assert arena_score(0.7, 0.0044) == pytest.approx(1.1 * 0.7 / (0.07 + 1))
    assert arena_score(0.7, 200) == arena_score(0.7, 1e6) == 0
    assert arena_score(0, 200) == arena_score(0, 1) == 0
    assert arena_score(0.7, 0) == arena_score(0.7, -1) == 0


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("accuracy", "cost"), [(1.01, 1), (-0.1, 1), (NAN, 1), (0.5, NAN), (0.5, INF)]
)
def test_an_arena_score_of_no_numbers_is_refused(accuracy: float, cost: float) -> None:
    with pytest.raises(InputError, match="arena score"):
        arena_score(accuracy, cost)


def test_regret_is_the_gap_to_the_best_choice() -> None:
    score = np.array([[1.0, 0.0], [0.2, 0.6], [0.0, 0.0]])
    assert regret(score, score.argmax(axis=1)) == 0
    assert regret(score, np.array([1, 0, 0])) == pytest.approx((1 + 0.4) / 3)
    assert chosen_values(score, np.array([1, 1, 0])).tolist() == [0.0, 0.6, 0.0]


@st.composite
def routings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Estimates, expected costs, scores and costs; small integers make ties common."""
    n, k = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    coarse = draw(st.booleans())
    estimate = rng.integers(0, 4, (n, k)) / 4 if coarse else rng.random((n, k))
    expected = rng.integers(0, 3, k).astype(float) if coarse else rng.random(k)
    return estimate, expected, rng.random((n, k)), rng.random((n, k))


@settings(max_examples=150)
@given(routings())
def test_the_sweep_is_the_tradeoff_rule_at_every_price(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    estimate, expected, score, cost = case
    curve = tradeoff_curve(estimate, expected, score, cost)
    choice = Argmax().choose(estimate, expected)
    assert curve.price[0] == 0
    assert curve.quality[0] == pytest.approx(chosen_values(score, choice).mean())
    assert curve.cost[0] == pytest.approx(chosen_values(cost, choice).mean())
    # Between two prices at which something switches, and beyond the last, the choice is constant.
    ends = np.append(curve.price, curve.price[-1] + 1)
    for i, (low, high) in enumerate(pairwise(ends)):
        if high - low < 1e-9:
            continue
        choice = Tradeoff((low + high) / 2).choose(estimate, expected)
        assert curve.quality[i] == pytest.approx(chosen_values(score, choice).mean(), abs=1e-12)
        assert curve.cost[i] == pytest.approx(chosen_values(cost, choice).mean(), abs=1e-12)


@given(routings())
def test_the_sweep_ends_at_the_cheapest_model(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    estimate, expected, score, _ = case
    known = np.broadcast_to(expected, score.shape)
    curve = tradeoff_curve(estimate, expected, score, known)
    assert curve.cost[-1] == pytest.approx(expected.min(), abs=1e-12)
    assert np.all(np.diff(curve.cost) <= 1e-12)
    assert np.all(np.diff(curve.price) > 0)


def test_a_sweep_of_thousands_of_prompts_keeps_every_operating_point() -> None:
    rng = np.random.default_rng(0)
    estimate, score = rng.random((3000, 8)), rng.random((3000, 8))
    curve = tradeoff_curve(estimate, rng.random(8), score, rng.random((3000, 8)))
    assert 3000 < len(curve.price) <= 3000 * 7 + 1


def test_cost_at_equal_quality_is_relative_and_infinite_when_never_reached() -> None:
    hull = upper_hull([1.0, 3.0], [0.4, 0.8])
    assert relative_cost_at_quality(hull, 0.6, 4.0) == pytest.approx(0.5)
    assert relative_cost_at_quality(hull, 0.9, 4.0) == float("inf")
    assert np.isnan(relative_cost_at_quality(hull, 0.5, 0.0))


def test_apgr_is_a_half_at_random_and_one_when_the_gap_is_seen() -> None:
    weak = np.array([1.0, 1.0, 0.0, 0.0] * 250)
    strong = np.ones(1000)
    blind = np.zeros(1000)
    assert apgr(weak, strong, blind) == pytest.approx(0.5)
    # Half of the prompts gain: a perfect preference has all of the gap at p = 1/2.
    assert apgr(weak, strong, 1 - weak) == pytest.approx(0.75)
    assert apgr(weak, strong, weak) == pytest.approx(0.25)


def test_apgr_exceeds_one_where_the_models_complement_each_other() -> None:
    weak = np.array([1.0, 0.0, 0.0, 1.0] * 50)
    strong = np.array([0.0, 1.0, 1.0, 1.0] * 50)
    assert apgr(weak, strong, strong - weak) > 1


@given(st.integers(0, 10_000))
def test_the_gap_curve_is_that_of_counted_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 40
    weak, strong = rng.random(n), rng.random(n) + 0.5
    preference = rng.permutation(n).astype(float)  # no ties
    fraction, pgr = gap_recovered(weak, strong, preference, steps=n + 1)
    for count, p in enumerate(fraction):
        to_strong = preference >= n - count
        accuracy = np.where(to_strong, strong, weak).mean()
        expected = (accuracy - weak.mean()) / (strong.mean() - weak.mean())
        assert pgr[count] == pytest.approx(expected)
        assert p == pytest.approx(count / n)


def test_prompts_of_equal_preference_are_mixed_whatever_their_order() -> None:
    rng = np.random.default_rng(1)
    weak, strong = rng.random(60), rng.random(60) + 0.3
    preference = rng.integers(0, 3, 60).astype(float)
    order = rng.permutation(60)
    first = gap_recovered(weak, strong, preference)[1]
    second = gap_recovered(weak[order], strong[order], preference[order])[1]
    assert first == pytest.approx(second)


def test_cpt_is_found_by_interpolation() -> None:
    weak, strong = np.array([1.0, 1.0, 0.0, 0.0]), np.ones(4)
    assert cpt(weak, strong, 1 - weak, 0.5) == pytest.approx(0.25)
    assert cpt(weak, strong, np.zeros(4), 0.8) == pytest.approx(0.8)
    assert cpt(weak, strong, 1 - weak, 0.0) == 0
    assert cpt(weak, strong, 1 - weak, 1.5) == float("inf")


def test_without_a_gap_nothing_is_recovered() -> None:
    same = np.ones(5)
    assert np.isnan(apgr(same, same, np.arange(5)))
    assert np.isnan(cpt(same, same, np.arange(5), 0.5))


def test_gap_arguments_that_disagree_are_refused() -> None:
    with pytest.raises(InputError, match="one length"):
        apgr([1.0], [1.0, 0.0], [0.5, 0.5])
    with pytest.raises(InputError, match="at least 2 steps"):
        apgr([1.0], [0.0], [0.5], steps=1)
