from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import change, outcomes, queries


def test_estimates_are_probabilities() -> None:
    data = outcomes(skill=1.0)
    router = build_router("logistic:penalty=1e-3").fit(data)
    estimate = router.predict(queries(data, router))
    assert estimate.min() > 0.0
    assert estimate.max() < 1.0
    assert np.abs(estimate - data.scores).max() < 0.1


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_in_training_each_model_is_right_as_often_as_estimated(missing: float) -> None:
    data = outcomes(150, missing=missing)
    router = build_router("logistic").fit(data)
    estimate = router.predict(queries(data, router))
    known = np.isfinite(data.scores)
    error = np.where(known, estimate - data.scores, 0.0).sum(axis=0) / known.sum(axis=0)
    np.testing.assert_allclose(error, 0.0, atol=1e-3)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_penalised_log_loss_has_no_slope_left(missing: float) -> None:
    data = outcomes(150, missing=missing)
    router = build_router("logistic:penalty=2").fit(data)
    error = router.predict(queries(data, router)) - data.scores
    slope = data.embeddings.T.astype(np.float64) @ np.nan_to_num(error)
    weights = router.state()["weights"]
    assert np.abs(slope).max() > 0.1
    np.testing.assert_allclose(slope + 2 * weights, 0.0, atol=2e-2)


def test_a_huge_penalty_gives_the_means() -> None:
    data = outcomes(missing=0.3)
    router = build_router("logistic:penalty=1e6").fit(data)
    means = np.tile(np.nanmean(data.scores.astype(np.float64), axis=0), (80, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-3)


def test_partial_scores_are_soft_targets() -> None:
    data = outcomes(100, 2)
    halves = change(data, scores=data.scores * np.float32(0.5) + np.float32(0.25))
    router = build_router("logistic:penalty=1e-2").fit(halves)
    np.testing.assert_allclose(
        router.predict(queries(data, router)).mean(axis=0), halves.scores.mean(axis=0), atol=1e-3
    )


@pytest.mark.parametrize("penalty", ["0", "-1", "nan", "inf"])
def test_impossible_penalties_are_refused(penalty: str) -> None:
    with pytest.raises(UsageError, match="router 'logistic': expected penalty > 0"):
        build_router(f"logistic:penalty={penalty}")
