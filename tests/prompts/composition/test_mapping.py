from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.composition import (
    BudgetError,
    budget_curve,
    enumerate_mapping,
    solve_mapping,
)
from crossroads.prompts.composition.mapping import spell_size

# Two specialists and a generalist that costs as much as both.
WORTH = [[0.9, 0.1, 0.7], [0.1, 0.8, 0.7]]
SIZE = [7.0, 7.0, 14.0]


@st.composite
def instances(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores in tenths, so that ties are common; sizes in halves."""
    num_categories, num_experts = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    tenths = st.lists(st.integers(0, 10), min_size=num_experts, max_size=num_experts)
    worth = draw(st.lists(tenths, min_size=num_categories, max_size=num_categories))
    weight = draw(st.lists(st.integers(1, 50), min_size=num_categories, max_size=num_categories))
    size = draw(st.lists(st.integers(1, 140), min_size=num_experts, max_size=num_experts))
    return np.array(worth) / 10, np.array(weight), np.array(size) / 2


def test_two_specialists_beat_a_generalist_of_their_joint_size() -> None:
    found = solve_mapping(WORTH, [1, 1], SIZE, 14)
    assert found.expert.tolist() == [0, 1]
    assert found.kept.tolist() == [0, 1]
    assert found.score == pytest.approx(0.85)
    assert found.total == 14


def test_a_smaller_budget_keeps_the_specialist_of_the_heavier_category() -> None:
    assert solve_mapping(WORTH, [1, 2], SIZE, 7).expert.tolist() == [1, 1]
    assert solve_mapping(WORTH, [2, 1], SIZE, 7).expert.tolist() == [0, 0]


def test_a_favourite_that_does_not_fit_is_no_rival() -> None:
    worth = np.array([[0, 0, 0, 0.1], [0, 0, 0, 0.1], [0, 0, 0.1, 0]])
    found = solve_mapping(worth, np.ones(3), np.array([0.5, 0.5, 0.5, 2.5]), 2.25)
    assert found.kept.tolist() == [2] and found.total == 0.5


@settings(max_examples=60, deadline=None)
@given(instances(), st.floats(0, 1))
def test_the_programme_equals_enumeration(
    instance: tuple[np.ndarray, np.ndarray, np.ndarray], share: float
) -> None:
    worth, weight, size = instance
    budget = size.min() + share * (size.sum() - size.min())
    found = solve_mapping(worth, weight, size, budget)
    best = enumerate_mapping(worth, weight, size, budget)
    assert found.score == pytest.approx(best.score, abs=1e-9)
    assert found.total == pytest.approx(best.total)


@pytest.mark.slow
def test_the_programme_equals_enumeration_on_200_random_instances() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = rng.integers(1, 7), rng.integers(1, 9)
        worth, weight = rng.random(shape), rng.integers(1, 100, shape[0])
        size = rng.uniform(0.5, 70, shape[1])
        budget = rng.uniform(size.min(), size.sum())
        found = solve_mapping(worth, weight, size, budget)
        best = enumerate_mapping(worth, weight, size, budget)
        assert found.score == pytest.approx(best.score, abs=1e-9)


@settings(max_examples=12, deadline=None)
@given(instances())
def test_the_curve_rises_stays_in_budget_and_is_never_below_a_single_expert(
    instance: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    curve = budget_curve(*instance)
    assert (np.diff(curve.budget) > 0).all()
    assert (np.diff(curve.score) >= -1e-9).all()
    assert (curve.total <= curve.budget * (1 + 1e-9)).all()
    assert (curve.score >= curve.best_single - 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(instances())
def test_without_a_budget_every_category_has_its_favourite(
    instance: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    worth, weight, size = instance
    found = solve_mapping(worth, weight, size)
    assert found.score == pytest.approx(np.average(worth.max(axis=1), weights=weight))
    assert set(found.expert) == set(found.kept)


def test_of_equally_good_experts_the_smaller_then_the_earlier_is_kept() -> None:
    assert solve_mapping([[0.5, 0.5, 0.5]], [1], [2, 1, 1]).expert.tolist() == [1]
    assert enumerate_mapping([[0.5, 0.5, 0.5]], [1], [2, 1, 1]).expert.tolist() == [1]


def test_where_favourites_tie_as_few_experts_as_possible_are_kept() -> None:
    worth = [[0.9, 0.9, 0.1], [0.1, 0.8, 0.8]]
    assert solve_mapping(worth, [1, 1], [1, 3, 1]).kept.tolist() == [0, 2]
    assert solve_mapping(worth, [1, 1], [1, 1.5, 1]).kept.tolist() == [1]


def test_sums_of_decimal_fractions_fit_their_own_budget() -> None:
    found = solve_mapping([[1.0, 0.0], [0.0, 1.0]], [1, 1], [0.1, 0.2], 0.3)
    assert found.kept.tolist() == [0, 1]


def test_an_excess_the_solver_would_tolerate_is_refused() -> None:
    found = solve_mapping([[1.0, 0.0], [0.0, 1.0]], [1, 1], [10.0, 10.000001], 20.0)
    assert found.score == pytest.approx(0.5)
    assert found.total <= 20.0


def test_a_budget_nobody_fits_names_the_smallest_that_one_does() -> None:
    with pytest.raises(BudgetError, match=r"budget of 2B.*smallest feasible budget is 3\.8B") as e:
        solve_mapping([[0.5, 0.5]], [1], [3.8e9, 7e9], 2e9)
    assert e.value.smallest == 3.8e9


def test_the_curve_of_given_budgets_lists_them() -> None:
    curve = budget_curve(WORTH, [1, 1], SIZE, [7, 14])
    np.testing.assert_allclose(curve.score, [0.5, 0.85])
    np.testing.assert_allclose(curve.best_single, [0.5, 0.7])


def test_more_experts_than_can_be_enumerated_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 20 experts to enumerate, got 21"):
        enumerate_mapping(np.zeros((1, 21)), [1], np.ones(21))


@pytest.mark.parametrize(
    ("worth", "weight", "size", "problem"),
    [
        ([[0.5, np.nan]], [1], [1, 1], "NaN"),
        ([[0.5, 0.5]], [0], [1, 1], "weights"),
        ([[0.5, 0.5]], [1], [1, 0], "sizes above 0"),
        ([[0.5, 0.5]], [1], [1, np.nan], "sizes above 0"),
        ([[0.5, 0.5]], [1, 1], [1, 1], "shapes"),
        ([[]], [1], [], "shapes"),
    ],
)
def test_wrong_arrays_are_refused(worth: list, weight: list, size: list, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        solve_mapping(worth, weight, size)


@pytest.mark.parametrize("budget", [0.0, -1.0, np.nan])
def test_a_budget_that_is_no_positive_number_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match="budget above 0"):
        solve_mapping(WORTH, [1, 1], SIZE, budget)


@pytest.mark.parametrize(
    ("size", "text"), [(3.8e9, "3.8B"), (135e6, "135M"), (1.5e12, "1.5T"), (2e3, "2K"), (7, "7")]
)
def test_sizes_are_spelt_as_people_do(size: float, text: str) -> None:
    assert spell_size(size) == text
