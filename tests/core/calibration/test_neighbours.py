from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.calibration.neighbours import (
    DistanceQuantiles,
    Neighbourhood,
    Support,
    nearest_points,
    neighbourhood,
)


def support_of(exemplar: np.ndarray, prediction: list[int], label: list[int]) -> Support:
    return Support(
        exemplar=exemplar.astype(np.float32),
        prediction=np.array(prediction),
        label=np.array(label),
        row=np.arange(len(label)),
    )


def line(prediction: list[int], label: list[int]) -> Support:
    """Points at 1, 2, 3 ... on a line."""
    return support_of(np.arange(1.0, len(label) + 1)[:, None], prediction, label)


ORIGIN = np.zeros((1, 1), dtype=np.float32)


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [
        ([1, 1, 1], [1, 1, 1], 3),  # everybody matches
        ([1, 1, 0, 1], [1, 1, 0, 1], 2),  # stopped by another class
        ([1, 1, 1], [1, 0, 1], 1),  # stopped by a wrong prediction
        ([0, 1, 1], [1, 1, 1], 0),  # the nearest fails
        ([1, 1, 1], [1, 7, 1], 1),  # a repellent never matches
    ],
)
def test_similarity_counts_matching_neighbours_until_the_first_failure(
    prediction: list[int], label: list[int], expected: int
) -> None:
    found = neighbourhood(ORIGIN, np.array([1]), line(prediction, label), depth=100)
    assert found.similarity.tolist() == [expected]


def test_the_depth_caps_the_similarity() -> None:
    found = neighbourhood(ORIGIN, np.array([1]), line([1] * 9, [1] * 9), depth=4)
    assert found.similarity.tolist() == [4]


@given(st.integers(0, 10_000))
def test_similarity_equals_walking_down_the_sorted_neighbours(seed: int) -> None:
    rng = np.random.default_rng(seed)
    support = support_of(
        rng.normal(size=(12, 3)), rng.integers(0, 2, 12).tolist(), rng.integers(0, 2, 12).tolist()
    )
    query, predicted = rng.normal(size=(5, 3)).astype(np.float32), rng.integers(0, 2, 5)
    found = neighbourhood(query, predicted, support, depth=100)
    for n in range(5):
        gap = np.linalg.norm(support.exemplar.astype(float) - query[n], axis=1)
        walked = 0
        for s in np.argsort(gap):
            if not support.prediction[s] == support.label[s] == predicted[n]:
                break
            walked += 1
        assert found.similarity[n] == walked
        assert found.nearest_distance[n] == pytest.approx(gap.min(), rel=1e-5)


def test_support_points_do_not_see_themselves_but_see_their_copies() -> None:
    points = np.array([[0.0], [0.0], [5.0]])
    support = support_of(points, [0, 0, 0], [0, 0, 0])
    found = neighbourhood(support.exemplar, support.prediction, support, depth=9, exclude_self=True)
    assert found.nearest_distance.tolist() == [0.0, 0.0, 5.0]
    assert found.similarity.tolist() == [2, 2, 2]


def test_points_added_later_are_seen_and_marked() -> None:
    support = line([1, 1], [1, 1]).with_points(
        np.array([[0.5]], dtype=np.float32), np.array([1]), np.array([0])
    )
    assert support.row.tolist() == [0, 1, -1]
    assert neighbourhood(ORIGIN, np.array([1]), support, depth=9).similarity.tolist() == [0]


def test_nearest_points_come_in_order_with_distances_not_squared() -> None:
    points, distance = nearest_points(ORIGIN, line([0] * 4, [0] * 4), 3)
    assert points.tolist() == [[0, 1, 2]]
    assert distance == pytest.approx(np.array([[1.0, 2.0, 3.0]]))


def quantiles(*classes: list[float]) -> DistanceQuantiles:
    return DistanceQuantiles(sorted_distance=tuple(np.array(c, dtype=float) for c in classes))


def test_distance_is_one_on_a_support_point_and_zero_past_the_farthest() -> None:
    found = quantiles([1.0, 2.0], [1.0, 4.0]).distance(np.array([0.0, 2.5, 9.0]))
    assert found.tolist() == [1.0, 0.0, 0.0]


def test_distance_counts_strictly_nearer_points_and_takes_the_worse_class() -> None:
    found = quantiles([1.0, 2.0, 3.0, 4.0], [2.0, 3.0]).distance(np.array([2.0, 2.5]))
    assert found.tolist() == [0.75, 0.5]


def test_an_empty_class_leaves_no_distance() -> None:
    assert quantiles([1.0], []).distance(np.array([0.0, 0.5])).tolist() == [0.0, 0.0]


def test_only_points_with_a_similarity_enter_the_quantiles() -> None:
    found = Neighbourhood(
        similarity=np.array([1, 0, 2]),
        nearest_distance=np.array([3.0, 1.0, 2.0]),
        nearest=np.zeros(3, np.int64),
    )
    made = DistanceQuantiles.of(found, np.array([0, 0, 0]), 1)
    assert made.sorted_distance[0].tolist() == [2.0, 3.0]
