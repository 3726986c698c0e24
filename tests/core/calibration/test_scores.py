from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.calibration.scores import (
    area_under_risk_coverage,
    brier,
    coverage_at_risk,
    expected_calibration_error,
    reliability_curve,
    risk_coverage,
)
from crossroads.core.errors import InputError, UsageError

Float64 = npt.NDArray[np.float64]
pairs = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40
).map(lambda rows: (np.array([a for a, _ in rows]), np.array([b for _, b in rows])))


def test_the_calibration_error_of_a_worked_example_is_the_one_by_hand() -> None:
    # Bins [0, .5) and [.5, 1]: claims .2 and .75 on average, observed 1/2 and 1.
    claims, outcomes = [0.1, 0.3, 0.6, 0.9], [0, 1, 1, 1]
    assert expected_calibration_error(claims, outcomes, bins=2) == pytest.approx(
        (2 * 0.3 + 2 * 0.25) / 4
    )


def test_claims_that_come_true_have_no_error() -> None:
    claims = np.repeat([0.25, 0.5], 4)
    outcomes = [1, 0, 0, 0, 1, 1, 0, 0]
    assert expected_calibration_error(claims, outcomes) == pytest.approx(0)
    assert expected_calibration_error(claims, outcomes, scheme="equal-mass") == pytest.approx(0)


def test_a_claim_of_one_falls_into_the_last_bin() -> None:
    curve = reliability_curve([1.0, 0.99], [1, 1], bins=10)
    assert curve.count.tolist() == [2]


def test_equal_mass_bins_share_the_rows_evenly_and_never_part_equal_claims() -> None:
    claims = np.linspace(0.9, 1, 30)
    even = reliability_curve(claims, np.ones(30), bins=5, scheme="equal-mass")
    assert even.count.tolist() == [6] * 5
    tied = reliability_curve(np.full(30, 0.7), np.ones(30), bins=5, scheme="equal-mass")
    assert tied.count.tolist() == [30]


@given(pairs, st.integers(1, 20), st.sampled_from(["equal-width", "equal-mass"]))
def test_errors_are_bounded_and_no_row_is_lost(
    rows: tuple[Float64, Float64], bins: int, scheme: str
) -> None:
    curve = reliability_curve(*rows, bins=bins, scheme=scheme)  # type: ignore[arg-type]
    assert curve.count.sum() == len(rows[0]) and len(curve.count) <= bins
    assert 0 <= expected_calibration_error(*rows, bins=bins) <= 1
    assert 0 <= brier(*rows) <= 1


@given(pairs)
def test_brier_is_at_least_the_squared_calibration_error(rows: tuple[Float64, Float64]) -> None:
    assert brier(*rows) >= expected_calibration_error(*rows) ** 2 - 1e-12


def test_risk_and_coverage_accept_ties_together() -> None:
    coverage, risk = risk_coverage([0.9, 0.5, 0.5, 0.1], [0, 1, 0, 1])
    assert coverage.tolist() == [0.25, 0.75, 1.0]
    assert risk == pytest.approx([0, 1 / 3, 1 / 2])


@given(pairs)
def test_at_full_coverage_the_risk_is_the_mean_loss(rows: tuple[Float64, Float64]) -> None:
    coverage, risk = risk_coverage(*rows)
    assert coverage[-1] == 1 and risk[-1] == pytest.approx(rows[1].mean())
    assert (np.diff(coverage) > 0).all()


def test_the_area_is_the_mean_over_the_orders_of_ties() -> None:
    confidence, loss = np.array([0.9, 0.5, 0.5, 0.5]), np.array([1.0, 0.0, 1.0, 0.0])
    orders = [
        np.mean(np.cumsum(loss[[0, *rest]]) / np.arange(1, 5))
        for rest in itertools.permutations([1, 2, 3])
    ]
    assert area_under_risk_coverage(confidence, loss) == pytest.approx(np.mean(orders))


@given(pairs)
def test_no_order_has_less_area_than_the_loss_itself(rows: tuple[Float64, Float64]) -> None:
    confidence, loss = rows
    best, worst = (area_under_risk_coverage(sign * loss, loss) for sign in (-1, 1))
    assert best - 1e-12 <= area_under_risk_coverage(confidence, loss) <= worst + 1e-12


def test_coverage_at_risk_takes_the_largest_share_that_keeps_it() -> None:
    confidence, loss = [4, 3, 2, 1], [1, 0, 0, 0]  # the surest row is wrong
    assert coverage_at_risk(confidence, loss, 0.25) == 1.0
    assert coverage_at_risk(confidence, loss, 0.3) == 1.0
    assert coverage_at_risk(confidence, loss, 0.2) == 0.0
    assert coverage_at_risk([4, 3, 2, 1], [0, 0, 1, 1], 0.0) == 0.5


@pytest.mark.parametrize(
    ("claims", "outcomes", "words"),
    [
        ([], [], "at least one"),
        ([0.5], [1, 0], "same number"),
        ([np.nan], [1], "row 0 is NaN"),
        ([1.5], [1], "got 1.5"),
        ([0.5], [-2], "got -2"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(
    claims: list[float], outcomes: list[float], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        expected_calibration_error(claims, outcomes)


def test_wrong_bins_and_schemes_are_refused() -> None:
    with pytest.raises(InputError, match="bins"):
        reliability_curve([0.5], [1], bins=0)
    with pytest.raises(UsageError, match="equal-width"):
        reliability_curve([0.5], [1], scheme="equal-widt")  # type: ignore[arg-type]
