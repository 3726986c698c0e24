from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from crossroads.core.calibration.estimator import SdmEstimator, fit_estimators
from crossroads.core.calibration.index import IndexCalibration, _margin, fit_weight, rank
from crossroads.core.calibration.training import SdmSettings

from .toy_vectors import clouds

SETTINGS = SdmSettings(width=8, epochs=5, rate=1e-2, batch=16, restarts=3)


@pytest.fixture(scope="module")
def estimators() -> list[SdmEstimator]:
    x, label = clouds(900)
    return fit_estimators(x, label, num_classes=2, level=0.9, settings=SETTINGS)


def test_ranks_are_shares_at_or_below_and_the_largest_is_one() -> None:
    found = rank([np.array([0.2, 0.4]), np.array([0.5])], np.array([[0.4, 0.6], [0.3, 0.4]]))
    assert found.tolist() == [[1.0, 1.0], [0.5, 0.0]]


def test_weights_lower_the_loss_of_the_identity() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    v = rng.random((400, 2)) * 0.5
    v[np.arange(400), label] += 0.3
    weight = fit_weight(v, label, np.zeros(400))

    def loss(w: np.ndarray) -> float:
        p = softmax(np.log(2) * v @ w.T, axis=1)
        return float(-np.log(p[np.arange(400), label]).mean())

    assert loss(weight) < loss(np.eye(2)) - 0.05


def test_easy_points_are_admitted_and_far_ones_are_not(estimators: list[SdmEstimator]) -> None:
    index = IndexCalibration.fit(estimators)
    x, label = clouds(200, seed=1)
    found = index.estimate(x)
    assert found.admitted.mean() > 0.2
    assert (found.prediction == label)[found.admitted].mean() > 0.95
    assert not index.estimate(x + 1000).admitted.any()


def test_restarts_that_disagree_raise_the_threshold(estimators: list[SdmEstimator]) -> None:
    alone, together = IndexCalibration.fit(estimators[:1]), IndexCalibration.fit(estimators)
    assert together.least_similarity >= alone.least_similarity
    x, _ = clouds(50, seed=2)
    assert (together.estimate(x).probability <= alone.estimate(x).probability + 1e-12).all()


def test_a_hard_task_admits_nothing() -> None:
    x, label = clouds(200, gap=0.0)
    hard = fit_estimators(x, label, num_classes=2, settings=SETTINGS)
    index = IndexCalibration.fit(hard)
    assert index.least_similarity == np.inf
    assert not index.estimate(x).admitted.any()


def test_the_margin_is_a_cauchy_quantile_of_the_absolute_deviation() -> None:
    values = np.array([1.0, 2.0, 4.0])
    assert _margin(values, 0.75) == pytest.approx(1.0)  # deviation 1, tan(pi / 4) = 1
    assert _margin(np.full(3, 7.0), 0.95) == 0
    assert _margin(np.array([1.0, np.inf, np.inf]), 0.95) == np.inf
