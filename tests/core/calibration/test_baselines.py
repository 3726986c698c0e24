from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from crossroads.core.calibration.baselines import (
    ConformalSets,
    accept_by_probability,
    fit_temperature,
    softmax_of,
)


def drawn(count: int, seed: int, *, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs whose softmax is the truth, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logit = 2 * rng.normal(size=(count, classes))
    cumulative = np.cumsum(softmax(logit, axis=1), axis=1)
    label = (rng.random((count, 1)) > cumulative[:, :-1]).sum(axis=1)
    return logit, label


def test_the_softmax_is_the_softmax() -> None:
    logit, _ = drawn(5, 0)
    assert softmax_of(logit) == pytest.approx(softmax(logit, axis=1))


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_known_factor(factor: float) -> None:
    logit, label = drawn(4000, 1)
    assert fit_temperature(factor * logit, label) == pytest.approx(factor, rel=0.12)


def test_acceptance_by_probability_looks_at_the_likeliest_class() -> None:
    probability = np.array([[0.96, 0.04], [0.06, 0.94]])
    assert accept_by_probability(probability, 0.95).tolist() == [True, False]


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_sets_cover_the_true_class_as_stated(penalty: float) -> None:
    rng = np.random.default_rng(2)
    logit, label = drawn(3000, 3)
    conformal = ConformalSets.fit(softmax_of(logit), label, 0.9, rng, penalty=penalty)
    fresh, truth = drawn(3000, 4)
    covered = conformal.sets(softmax_of(fresh), rng)[np.arange(3000), truth]
    assert covered.mean() == pytest.approx(0.9, abs=0.03)  # 4 standard errors of both draws


def test_only_sets_of_one_class_are_accepted() -> None:
    rng = np.random.default_rng(0)
    conformal = ConformalSets(threshold=0.99)
    sure, unsure = np.array([[1.0, 0.0, 0.0]]), np.array([[0.34, 0.33, 0.33]])
    assert conformal.accepts(sure, rng).tolist() == [True]
    assert conformal.accepts(unsure, rng).tolist() == [False]


def test_a_penalty_makes_sets_no_larger() -> None:
    logit, _ = drawn(200, 5)
    plain = ConformalSets(threshold=0.9)
    fined = ConformalSets(threshold=0.9, penalty=0.2)
    sizes = [
        s.sets(softmax_of(logit), np.random.default_rng(1)).sum(axis=1) for s in (plain, fined)
    ]
    assert (sizes[1] <= sizes[0]).all() and (sizes[1] < sizes[0]).any()


def test_too_few_calibration_points_leave_every_class_in() -> None:
    rng = np.random.default_rng(0)
    conformal = ConformalSets.fit(np.array([[0.9, 0.1]]), np.array([0]), 0.95, rng)
    assert conformal.sets(np.array([[1.0, 0.0]]), rng).all()
