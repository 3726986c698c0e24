"""Intervals: exact on known cases, honest on one value, narrow where pairs agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.core.statistics import bootstrap_interval, paired_difference, summarise

finite = st.floats(-1e6, 1e6)


def test_the_interval_of_three_seeds_is_the_tabulated_t_interval() -> None:
    summary = summarise([1.0, 2.0, 3.0])
    # Two-sided 95% point of Student t with 2 degrees of freedom, from tables: 4.30265.
    assert summary.mean == 2.0
    assert summary.half_width == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)
    assert summary.high == pytest.approx(2 + 4.30265 / np.sqrt(3), rel=1e-5)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    summary = summarise([0.5])
    assert (summary.mean, summary.low, summary.high) == (0.5, None, None)
    assert summary.half_width is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_figure_undefined_on_one_seed_has_no_mean(bad: float | None) -> None:
    summary = summarise([1.0, bad, 3.0])
    assert summary.to_dict() == {
        "mean": None,
        "low": None,
        "high": None,
        "per_seed": [1.0, None, 3.0],
    }


@given(st.lists(finite, min_size=2, max_size=8))
def test_the_interval_holds_the_mean_and_grows_with_the_level(values: list[float]) -> None:
    narrow, wide = summarise(values, level=0.5), summarise(values, level=0.99)
    assert narrow.mean is not None and narrow.low is not None and wide.low is not None
    assert wide.low <= narrow.low <= narrow.mean


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=8))
def test_a_difference_changes_sign_with_its_sides(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.mean is not None and back.mean is not None
    assert there.mean == -back.mean


def test_pairing_removes_what_the_seeds_share() -> None:
    hard, easy = [0.50, 0.60, 0.70], [0.51, 0.61, 0.71]
    gap = paired_difference(easy, hard)
    alone = summarise(easy)
    assert gap.mean == pytest.approx(0.01)
    assert gap.half_width is not None and alone.half_width is not None
    assert gap.half_width < 1e-6 < alone.half_width


def test_different_numbers_of_seeds_cannot_be_paired() -> None:
    with pytest.raises(InputError, match="same seeds"):
        paired_difference([1.0], [1.0, 2.0])


def test_the_bootstrap_is_repeatable_and_near_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    assert (low, high) != bootstrap_interval(values, seed=2)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert high - low == pytest.approx(2 * half, rel=0.1)
    assert low < values.mean() < high


@pytest.mark.parametrize(
    ("values", "options"),
    [([], {}), ([float("nan")], {}), ([1.0], {"draws": 0}), ([1.0], {"level": 1.0})],
)
def test_wrong_input_of_the_bootstrap_is_refused(
    values: list[float], options: dict[str, int]
) -> None:
    with pytest.raises(InputError):
        bootstrap_interval(values, **options)
