"""Preferences, Pareto tools and the cost-quality hull."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from crossroads.core import preference as pref
from crossroads.core.errors import InputError

NO_DEADLINE = settings(deadline=None)  # the machine may be busy
# A grid of values: ties are common, and products of differences are exact.
units = st.integers(0, 20).map(lambda k: k / 20)
points_3d = st.integers(1, 12).flatmap(lambda n: arrays(np.float64, (n, 3), elements=units))
cost_quality = st.integers(1, 12).flatmap(lambda n: arrays(np.float64, (2, n), elements=units))


def dominated(value_NM: np.ndarray, n: int) -> bool:
    """The definition, written out."""
    other = [m for m in range(len(value_NM)) if m != n]
    return any(
        (value_NM[m] >= value_NM[n]).all() and (value_NM[m] > value_NM[n]).any() for m in other
    )


@pytest.mark.parametrize(("objectives", "divisions"), [(1, 4), (2, 10), (3, 5), (4, 3)])
def test_grid_holds_every_multiple_once_and_sums_to_one(objectives: int, divisions: int) -> None:
    grid = pref.simplex_grid(objectives, divisions)
    assert grid.shape == (math.comb(divisions + objectives - 1, objectives - 1), objectives)
    np.testing.assert_allclose(grid.sum(axis=1), 1.0)
    assert (grid >= 0).all()
    assert len(np.unique(grid, axis=0)) == len(grid)
    np.testing.assert_allclose(grid * divisions, np.round(grid * divisions), atol=1e-12)


def test_samples_lie_on_the_simplex_and_repeat_with_the_seed() -> None:
    first = pref.simplex_samples(3, 50, rng=np.random.default_rng(4), concentration=[1, 2, 3])
    again = pref.simplex_samples(3, 50, rng=np.random.default_rng(4), concentration=[1, 2, 3])
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first.sum(axis=1), 1.0)
    assert first.shape == (50, 3)


@pytest.mark.parametrize("call", [lambda: pref.simplex_grid(0, 3), lambda: pref.simplex_grid(2, 0)])
def test_grid_refuses_empty_sizes(call) -> None:
    with pytest.raises(InputError, match="simplex grid"):
        call()


@pytest.mark.parametrize("concentration", [0.0, -1.0, float("nan")])
def test_samples_refuse_a_concentration_that_is_not_positive(concentration: float) -> None:
    with pytest.raises(InputError, match="concentration"):
        pref.simplex_samples(2, 1, rng=np.random.default_rng(0), concentration=concentration)


@NO_DEADLINE
@given(points_3d)
def test_utilities_agree_with_their_formulas(value_NM: np.ndarray) -> None:
    w = np.array([0.5, 0.3, 0.2])
    gap = np.abs(1.0 - value_NM)
    np.testing.assert_allclose(pref.linear_utility(value_NM, w), (value_NM * w).sum(axis=1))
    np.testing.assert_allclose(pref.chebyshev_utility(value_NM, w), -(gap * w).max(axis=1))
    np.testing.assert_allclose(
        pref.augmented_chebyshev_utility(value_NM, w, rho=0.1),
        -(gap * w).max(axis=1) - 0.1 * gap.sum(axis=1),
    )


@NO_DEADLINE
@given(points_3d)
def test_several_preferences_give_one_row_each(value_NM: np.ndarray) -> None:
    grid = pref.simplex_grid(3, 3)
    for utility in (
        pref.linear_utility,
        pref.chebyshev_utility,
        pref.augmented_chebyshev_utility,
    ):
        table = utility(value_NM, grid)
        assert table.shape == (len(grid), len(value_NM))
        np.testing.assert_allclose(table[4], utility(value_NM, grid[4]))


@NO_DEADLINE
@given(points_3d)
def test_best_of_a_positive_linear_preference_is_on_the_front(value_NM: np.ndarray) -> None:
    best = int(pref.linear_utility(value_NM, [0.5, 0.3, 0.2]).argmax())
    assert pref.pareto_front(value_NM)[best]


def test_chebyshev_reaches_a_point_inside_the_dent_of_a_front() -> None:
    values = np.array([[1.0, 0.0], [0.4, 0.4], [0.0, 1.0]])
    grid = pref.simplex_grid(2, 20)
    assert 1 not in pref.linear_utility(values, grid).argmax(axis=1)
    assert 1 in pref.chebyshev_utility(values, grid).argmax(axis=1)


def test_augmentation_separates_weakly_dominated_points() -> None:
    values = np.array([[0.5, 0.6], [0.5, 0.9]])
    assert np.ptp(pref.chebyshev_utility(values, [0.9, 0.1])) == 0
    weak, strong = pref.augmented_chebyshev_utility(values, [0.9, 0.1])
    assert strong > weak


@NO_DEADLINE
@given(points_3d)
def test_front_is_what_nothing_dominates(value_NM: np.ndarray) -> None:
    expected = [not dominated(value_NM, n) for n in range(len(value_NM))]
    assert pref.pareto_front(value_NM).tolist() == expected


@NO_DEADLINE
@given(points_3d)
def test_minimising_is_maximising_the_negative(value_NM: np.ndarray) -> None:
    mixed = value_NM * [1, -1, 1]
    np.testing.assert_array_equal(
        pref.pareto_front(mixed, maximise=[True, False, True]), pref.pareto_front(value_NM)
    )
    assert pref.hypervolume(mixed, [0.0, 1.0, 0.0], maximise=[True, False, True]) == pytest.approx(
        pref.hypervolume(value_NM, [0.0, -1.0, 0.0])
    )


def test_front_of_nothing_and_of_one_objective() -> None:
    assert pref.pareto_front(np.empty((0, 2))).tolist() == []
    assert pref.pareto_front([[1.0], [2.0], [2.0]]).tolist() == [False, True, True]


@NO_DEADLINE
@given(points_3d, units)
def test_hypervolume_matches_counting_unit_cells(value_NM: np.ndarray, corner: float) -> None:
    counts = np.round(value_NM * 20).astype(int)
    start = round(corner * 20)
    cells = np.zeros((20, 20, 20), dtype=bool)
    for x, y, z in counts:
        if min(x, y, z) > start:
            cells[start:x, start:y, start:z] = True
    assert pref.hypervolume(value_NM, corner) == pytest.approx(cells.sum() / 8000)


@NO_DEADLINE
@given(points_3d, points_3d)
def test_more_points_never_lower_hypervolume_nor_raise_r2(a: np.ndarray, b: np.ndarray) -> None:
    both, grid = np.vstack([a, b]), pref.simplex_grid(3, 4)
    assert pref.hypervolume(both, 0.0) >= pref.hypervolume(a, 0.0) - 1e-12
    assert pref.r2_indicator(both, grid) <= pref.r2_indicator(a, grid) + 1e-12


def test_hypervolume_of_nothing_is_zero() -> None:
    assert pref.hypervolume(np.empty((0, 2)), 0.0) == 0.0


@NO_DEADLINE
@given(points_3d)
def test_r2_is_the_mean_of_the_best_weighted_distance(value_NM: np.ndarray) -> None:
    grid = pref.simplex_grid(3, 3)
    expected = np.mean([min(max(w * abs(1 - v)) for v in value_NM) for w in grid])
    assert pref.r2_indicator(value_NM, grid) == pytest.approx(expected)


def test_r2_is_zero_at_the_ideal_point() -> None:
    grid = pref.simplex_grid(2, 5)
    assert pref.r2_indicator([[0.2, 0.1], [1.0, 1.0]], grid) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pref.pareto_front([1.0, 2.0]), r"shape \(N, M\)"),
        (lambda: pref.pareto_front([[1.0, np.nan]]), "NaN"),
        (lambda: pref.pareto_front([[1.0, 2.0]], maximise=[True]), "one flag or 2"),
        (lambda: pref.linear_utility([[1.0, 2.0]], [1.0]), "weights of shape"),
        (lambda: pref.linear_utility([[1.0, 2.0]], [1.0, -1.0]), ">= 0"),
        (lambda: pref.hypervolume([[1.0, 2.0]], np.inf), "finite reference"),
        (lambda: pref.r2_indicator(np.empty((0, 2)), [[1.0, 0.0]]), "at least one point"),
        (lambda: pref.upper_hull([], []), "at least one"),
        (lambda: pref.upper_hull([1.0], [1.0, 2.0]), "as many costs"),
        (lambda: pref.upper_hull([np.nan], [1.0]), "finite"),
        (lambda: pref.aiq([1.0], [1.0], 2.0, 1.0), "low <= high"),
        (lambda: pref.aiq([1.0], [1.0], np.nan, 1.0), "low <= high"),
    ],
)
def test_wrong_input_is_refused_by_name(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@NO_DEADLINE
@given(cost_quality)
def test_hull_rises_bends_down_and_covers_every_point(rows: np.ndarray) -> None:
    cost, quality = rows
    hull = pref.upper_hull(cost, quality)
    assert (np.diff(hull.cost) > 0).all()
    assert (np.diff(hull.quality) > 0).all()
    slopes = np.diff(hull.quality) / np.diff(hull.cost)
    assert (np.diff(slopes) < 1e-12).all()
    assert (pref.hull_quality_at(hull, cost) >= quality - 1e-12).all()
    np.testing.assert_array_equal(cost[hull.index], hull.cost)
    np.testing.assert_array_equal(quality[hull.index], hull.quality)


@NO_DEADLINE
@given(cost_quality)
def test_hull_is_the_best_mixture_of_two_points_within_the_budget(rows: np.ndarray) -> None:
    cost, quality = rows
    hull = pref.upper_hull(cost, quality)
    for budget in np.linspace(cost.min(), 1.0, 7):
        best = quality[cost <= budget].max()
        for i in np.flatnonzero(cost <= budget):
            for j in np.flatnonzero(cost > budget):
                share = (budget - cost[i]) / (cost[j] - cost[i])
                best = max(best, (1 - share) * quality[i] + share * quality[j])
        assert pref.hull_quality_at(hull, budget) == pytest.approx(best, abs=1e-9)


@NO_DEADLINE
@given(cost_quality)
def test_cost_at_quality_inverts_the_hull(rows: np.ndarray) -> None:
    hull = pref.upper_hull(*rows)
    wanted = np.linspace(hull.quality[0], hull.quality[-1], 9)
    spent = pref.cost_at_quality(hull, wanted)
    np.testing.assert_allclose(pref.hull_quality_at(hull, spent), wanted, atol=1e-9)
    assert pref.cost_at_quality(hull, hull.quality[0] - 1) == hull.cost[0]
    assert pref.cost_at_quality(hull, hull.quality[-1] + 0.01) == np.inf


def test_hull_is_flat_to_the_right_and_undefined_to_the_left() -> None:
    hull = pref.upper_hull([1.0, 2.0, 3.0], [0.2, 0.8, 0.5])
    assert hull.index.tolist() == [0, 1]
    assert pref.hull_quality_at(hull, [1.5, 2.0, 9.0]).tolist() == [0.5, 0.8, 0.8]
    assert np.isnan(pref.hull_quality_at(hull, 0.99))


def test_aiq_of_a_hand_computed_case() -> None:
    # Rises from 0.2 to 0.8 over [1, 2], then flat to 5: (0.5 + 3 * 0.8) / 4.
    assert pref.aiq([1.0, 2.0, 3.0], [0.2, 0.8, 0.5], 1.0, 5.0) == pytest.approx(2.9 / 4)


def test_aiq_counts_unaffordable_budgets_as_zero() -> None:
    assert pref.aiq([3.0], [0.8], 1.0, 5.0) == pytest.approx(0.4)
    assert pref.aiq([9.0], [0.8], 1.0, 5.0) == 0.0


def test_aiq_of_an_empty_range_is_the_quality_there() -> None:
    assert pref.aiq([1.0, 2.0], [0.2, 0.8], 1.5, 1.5) == pytest.approx(0.5)
    assert pref.aiq([1.0, 2.0], [0.2, 0.8], 0.5, 0.5) == 0.0
    just_above = np.nextafter(1.0, 2.0)
    assert pref.aiq([just_above], [0.7], 1.0, 1.0) == 0.7


@NO_DEADLINE
@given(cost_quality, cost_quality)
def test_aiq_lies_within_the_qualities_and_grows_with_points(a: np.ndarray, b: np.ndarray) -> None:
    both = np.hstack([a, b])
    low, high = float(both[0].min()), float(both[0].max())
    alone, together = pref.aiq(*a, low, high), pref.aiq(*both, low, high)
    assert 0 <= alone <= a[1].max() + 1e-12
    assert together >= alone - 1e-12


@NO_DEADLINE
@given(cost_quality, st.sampled_from([1e-6, 0.1, 1e5]))
def test_aiq_does_not_depend_on_the_currency(rows: np.ndarray, rate: float) -> None:
    cost, quality = rows
    low, high = float(cost.min()), float(cost.max())
    expected = pref.aiq(cost, quality, low, high)
    assert pref.aiq(cost * rate, quality, low * rate, high * rate) == pytest.approx(
        expected, abs=1e-9
    )
