from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from crossroads.prompts.clustering import kmeans, squared_distances, squared_lengths

POINTS = arrays(np.float64, (7, 3), elements=st.floats(-10, 10))


@given(POINTS, POINTS)
def test_distances_are_those_written_out(points: np.ndarray, centres: np.ndarray) -> None:
    expected = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared_distances(points, centres), expected, atol=1e-9)
    given_lengths = squared_distances(points, centres, squared_lengths(centres))
    np.testing.assert_array_equal(given_lengths, squared_distances(points, centres))


@given(POINTS, st.integers(1, 12), st.integers(0, 3))
def test_centres_lie_among_the_points(points: np.ndarray, most: int, seed: int) -> None:
    centres = kmeans(points, most, np.random.default_rng(seed))
    assert 1 <= len(centres) <= min(most, len(np.unique(points.astype(np.float32), axis=0)))
    assert (centres >= points.min(axis=0) - 1e-4).all()
    assert (centres <= points.max(axis=0) + 1e-4).all()


def test_separated_clouds_get_a_centre_each() -> None:
    rng = np.random.default_rng(0)
    clouds = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = np.repeat(clouds, 30, axis=0) + rng.normal(scale=0.1, size=(90, 2))
    found = min(
        (kmeans(points, 3, np.random.default_rng(seed)) for seed in range(5)),
        key=lambda c: squared_distances(points, c).min(axis=1).sum(),
    )
    assert squared_distances(clouds, found).min(axis=1).max() < 0.01


def test_one_centre_is_the_mean() -> None:
    points = np.random.default_rng(0).normal(size=(40, 5))
    centre = kmeans(points, 1, np.random.default_rng(1))
    np.testing.assert_allclose(centre[0], points.mean(axis=0), atol=1e-6)


def test_copies_are_one_point() -> None:
    assert kmeans(np.ones((9, 4)), 5, np.random.default_rng(0)).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_gives_the_same_centres(seed: int) -> None:
    points = np.random.default_rng(9).normal(size=(50, 3))
    again = [kmeans(points, 8, np.random.default_rng(seed)) for _ in range(2)]
    np.testing.assert_array_equal(*again)
