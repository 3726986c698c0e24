from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.calibration.region import (
    Region,
    band,
    check_level,
    dkw,
    effective_similarity,
    find_region,
)
from crossroads.core.errors import InputError


def test_effective_similarity_is_the_lesser_of_count_and_power() -> None:
    found = effective_similarity(np.array([0, 3, 100]), np.array([1.0, 1.0, 0.5]))
    assert found == pytest.approx([0.0, 3.0, np.sqrt(102)])


def two_classes(own: list[float], label: list[int]) -> np.ndarray:
    """Probabilities (N, 2) with ``own`` for the true class."""
    rows = np.empty((len(own), 2))
    rows[np.arange(len(own)), label] = own
    rows[np.arange(len(own)), 1 - np.array(label)] = 1 - np.array(own)
    return rows


def test_the_region_begins_where_both_classes_reach_the_level() -> None:
    label = [0, 0, 0, 1, 1, 1]
    probability = two_classes([0.2, 0.99, 0.97, 0.99, 0.6, 0.96], label)
    effective = np.array([1.0, 5.0, 9.0, 5.0, 3.0, 9.0])
    region = find_region(effective, probability, np.array(label), 0.95)
    assert region.least_similarity == 5.0
    assert region.least_probability.tolist() == [0.97, 0.96]


def test_a_model_too_weak_for_the_level_has_an_empty_region() -> None:
    label = [0, 1, 0, 1]
    region = find_region(np.full(4, 50.0), two_classes([0.9] * 4, label), np.array(label), 0.95)
    assert region.is_empty
    assert not region.admits(np.array([1e9]), np.array([[1.0, 0.0]])).any()


def test_a_class_without_points_in_the_region_keeps_it_empty() -> None:
    probability = two_classes([0.99, 0.99], [0, 0])
    assert find_region(np.array([5.0, 6.0]), probability, np.array([0, 0]), 0.95).is_empty


def test_points_below_one_never_start_a_region() -> None:
    label = [0, 1]
    region = find_region(
        np.array([0.5, 0.5]), two_classes([1.0, 1.0], label), np.array(label), 0.95
    )
    assert region.is_empty


def test_admission_needs_similarity_and_the_probability_of_the_predicted_class() -> None:
    region = Region(level=0.9, least_similarity=4.0, least_probability=np.array([0.91, 0.97]))
    probability = np.array([[0.95, 0.05], [0.95, 0.05], [0.05, 0.95]])
    assert region.admits(np.array([4.0, 3.9, 10.0]), probability).tolist() == [True, False, False]


@given(st.integers(0, 5000), st.sampled_from([0.6, 0.8, 0.9, 0.95]))
def test_calibration_points_admitted_are_right_at_the_level_in_each_class(
    seed: int, level: float
) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 60)
    effective = rng.integers(0, 30, 60).astype(float)
    own = np.clip(rng.beta(4, 1, 60) + effective / 60, 0, 1)
    probability = two_classes(own.tolist(), label.tolist())
    region = find_region(effective, probability, label, level)
    if region.is_empty:
        return
    kept = effective >= region.least_similarity
    right = probability.argmax(axis=1) == label
    for c in range(2):
        wrong = (kept & (label == c) & ~right).sum()
        # By rank at most int((1 - level) n) points lie below psi_c, and psi_c > 1/2 is right.
        assert wrong <= int((1 - level) * (kept & (label == c)).sum())
        assert region.least_probability[c] >= level


def test_the_band_follows_the_rarest_class_below_the_point() -> None:
    held = (np.arange(100.0), np.arange(10.0))
    found = band(np.array([50.0, 5.0, 0.0]), held, 0.95)
    expected = [np.sqrt(np.log(40) / (2 * n)) for n in (10, 5)]
    assert found == pytest.approx([*expected, 1.0])


def test_the_band_is_one_without_points_or_at_a_level_of_one() -> None:
    assert dkw([0, 1, 10**9], 0.95)[:2].tolist() == [1.0, 1.0]
    assert dkw([10**9], 1.0).tolist() == [1.0]
    assert dkw([10**9], 0.95)[0] < 1e-3


@pytest.mark.parametrize("level", [0.5, 1.01, 0.0, float("nan")])
def test_levels_outside_a_half_to_one_are_refused(level: float) -> None:
    with pytest.raises(InputError, match="level"):
        check_level(level)
