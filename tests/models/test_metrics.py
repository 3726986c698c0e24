from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.models.metrics import (
    Gaussian,
    edit_distance,
    frechet_distance,
    word_error_rate,
)

words = st.lists(st.sampled_from("abc"), max_size=6)


def recursive(one: list[str], other: list[str]) -> int:
    """The definition of the edit distance, written out."""
    if not one or not other:
        return len(one) + len(other)
    return min(
        recursive(one[1:], other[1:]) + (one[0] != other[0]),
        recursive(one[1:], other) + 1,
        recursive(one, other[1:]) + 1,
    )


@given(words, words)
@settings(max_examples=30, deadline=None)
def test_the_edit_distance_is_its_recursive_definition(one: list[str], other: list[str]) -> None:
    assert edit_distance(one, other) == recursive(one, other) == edit_distance(other, one)


def test_the_word_error_rate_is_edits_over_reference_words() -> None:
    pairs = [(["one", "two", "three"], ["one", "three", "three", "four"]), (["six"], [])]
    assert word_error_rate(pairs) == pytest.approx((2 + 1) / 4)
    assert word_error_rate([(["a"], ["b", "c", "d"])]) == 3.0
    with pytest.raises(InputError, match="references"):
        word_error_rate([([], ["a"])])


def gaussian(seed: int, dims: int, rows: int = 50, scale: float = 1.0) -> Gaussian:
    draws = np.random.default_rng(seed)
    mixed = draws.normal(size=(rows, dims)) @ draws.normal(size=(dims, dims)) * scale
    return Gaussian.of(mixed + draws.normal(size=dims))


def test_moments_are_those_of_numpy() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    found = Gaussian.of(rows)
    np.testing.assert_allclose(found.mean, rows.astype(np.float64).mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(rows.astype(np.float64).T))


def test_on_a_line_the_distance_is_of_means_and_deviations() -> None:
    one = Gaussian(mean=np.array([1.0]), covariance=np.array([[4.0]]))
    other = Gaussian(mean=np.array([-2.0]), covariance=np.array([[9.0]]))
    assert frechet_distance(one, other) == pytest.approx(3**2 + (2 - 3) ** 2)


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_the_distance_equals_the_one_through_the_general_matrix_root(seed: int, dims: int) -> None:
    one, other = gaussian(seed, dims), gaussian(seed + 1, dims, scale=0.3)
    root = np.real(scipy.linalg.sqrtm(one.covariance @ other.covariance))
    direct = (
        np.square(one.mean - other.mean).sum()
        + np.trace(one.covariance) + np.trace(other.covariance) - 2 * np.trace(root)
    )  # fmt: skip
    assert frechet_distance(one, other) == pytest.approx(direct, rel=1e-5, abs=1e-5)
    assert frechet_distance(other, one) == pytest.approx(direct, rel=1e-5, abs=1e-5)


def test_singular_covariances_are_no_trouble() -> None:
    one, other = gaussian(0, dims=12, rows=4), gaussian(1, dims=12, rows=5)
    assert np.linalg.matrix_rank(one.covariance) == 3
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-5)
    assert frechet_distance(one, other) > 1


def test_a_distance_needs_samples_that_are_numbers() -> None:
    with pytest.raises(InputError, match="N >= 2"):
        Gaussian.of(np.zeros((1, 3)))
    with pytest.raises(InputError, match="diverged"):
        Gaussian.of(np.array([[0.0], [np.nan]]))
