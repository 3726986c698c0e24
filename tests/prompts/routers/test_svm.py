from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from crossroads.core.errors import UsageError
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.svm import squared_hinge_machines
from tests.prompts.routers.tables import argmax_quality, change, crossed, outcomes, queries


def test_machines_minimise_the_squared_hinge_of_the_module() -> None:
    data = outcomes(30, 2, num_features=3, missing=0.2)
    x, penalty = data.embeddings.astype(np.float64), 2.0
    scores = data.scores * 0.8 + 0.1  # graded: a case of both classes
    found = squared_hinge_machines(x, scores, penalty)
    for k in range(2):

        def loss(w: np.ndarray, k: int = k) -> float:
            total = penalty / 2 * float(w[:-1] @ w[:-1])
            for row, s in zip(x, scores[:, k].tolist(), strict=True):
                if np.isfinite(s):
                    m = float(row @ w[:-1] + w[-1])
                    total += s * max(0.0, 1 - m) ** 2 + (1 - s) * max(0.0, 1 + m) ** 2
            return float(total)

        best = minimize(loss, np.zeros(4), method="BFGS")
        assert loss(found[:, k]) == pytest.approx(best.fun, rel=1e-4)


def test_a_kernel_tells_apart_what_no_line_does() -> None:
    data, unseen = crossed(400), crossed(200, seed=1)
    quality = {}
    for kernel in ("linear", "rbf"):
        router = build_router(f"svm:kernel={kernel}").fit(data)
        quality[kernel] = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality["linear"] < 0.7
    assert quality["rbf"] > 0.95


def test_random_features_give_the_kernel() -> None:
    router = build_router("svm:kernel=rbf:features=4000:gamma=0.7").fit(outcomes(20))
    rows = outcomes(10, seed=3).embeddings
    mapped = router._map(rows)
    gap = rows[:, None, :] - rows[None, :, :]
    np.testing.assert_allclose(
        mapped @ mapped.T, np.exp(-0.7 * np.square(gap).sum(axis=2)), atol=0.08
    )


def test_estimates_are_calibrated_probabilities() -> None:
    data, unseen = outcomes(600), outcomes(600, seed=1)
    router = build_router("svm").fit(data)
    estimate = router.predict(queries(unseen, router))
    assert estimate.min() > 0
    assert estimate.max() < 1
    np.testing.assert_allclose(estimate.mean(axis=0), unseen.scores.mean(axis=0), atol=0.08)
    np.testing.assert_allclose(estimate[estimate > 0.5].mean(), 0.9, atol=0.06)


def test_on_noise_it_stays_near_the_means() -> None:
    data, unseen = outcomes(600, skill=0.5), outcomes(100, seed=1)
    router = build_router("svm").fit(data)
    off = router.predict(queries(unseen, router)) - data.scores.mean(axis=0)
    assert np.sqrt(np.square(off).mean()) < 0.1


def test_too_few_prompts_to_hold_any_out_give_the_means() -> None:
    scores = np.array([[1, 0, 1], [0, 0.5, 1], [1, 0, 0]], dtype=np.float32)
    data = change(outcomes(3), scores=scores)
    router = build_router("svm").fit(data)
    estimate = router.predict(queries(data, router))
    np.testing.assert_allclose(estimate, np.tile(scores.mean(axis=0), (3, 1)), atol=2e-3)


@pytest.mark.parametrize("setting", ["features=0", "gamma=0", "gamma=nan"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'svm': expected features >= 1"):
        build_router(f"svm:{setting}")


def test_an_unknown_kernel_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        build_router("svm:kernel=linaer")
