from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Queries, TrainingSet
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.elo import bradley_terry
from tests.prompts.routers.tables import argmax_quality, outcomes, queries


def reference(data: TrainingSet, query: np.ndarray, gamma: float, prior: float) -> np.ndarray:
    """Expected shares of wins of one query, the likelihood of the module written out."""
    similarity = data.embeddings.astype(np.float64) @ query.astype(np.float64)
    weight = gamma ** (1 + similarity / similarity.max())
    num_models = len(data.models)
    pairs = [(a, b) for a in range(num_models) for b in range(a)]

    def loss(theta: np.ndarray) -> float:
        total = 0.0
        for a, b in pairs:
            won, lost = np.log1p(np.exp(theta[b] - theta[a])), np.log1p(np.exp(theta[a] - theta[b]))
            total += prior * gamma**2 / 2 * (won + lost)
            for w, s in zip(weight, data.scores.astype(np.float64), strict=True):
                if np.isfinite(s[a]) and np.isfinite(s[b]):
                    share = (1 + s[a] - s[b]) / 2
                    total += w * (share * won + (1 - share) * lost)
        return float(total)

    theta = minimize(loss, np.zeros(num_models), method="BFGS").x
    beats = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
    return np.asarray((beats.sum(axis=1) - 0.5) / (num_models - 1))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_strengths_maximise_the_weighted_likelihood(missing: float) -> None:
    data, unseen = outcomes(25, 3, missing=missing), outcomes(3, seed=1)
    router = build_router("elo:gamma=6:prior=2").fit(data)
    estimate = router.predict(queries(unseen, router))
    for row, query in zip(estimate, unseen.embeddings, strict=True):
        share = reference(data, query, gamma=6, prior=2)
        contrast = (2 * share - 1) * 2 / 3
        np.testing.assert_allclose(row - row.mean(), contrast - contrast.mean(), atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.floats(1, 100))
def test_on_a_complete_table_newton_finds_the_closed_form(
    seed: int, num_models: int, gamma: float
) -> None:
    data = outcomes(30, num_models, seed=seed)
    router = build_router(f"elo:gamma={gamma}").fit(data)
    weight = router._weights(outcomes(4, seed=seed + 1).embeddings)
    np.testing.assert_allclose(router._newton(weight), router._complete(weight), atol=1e-5)


def test_a_very_high_prior_leaves_no_difference_between_models() -> None:
    for missing in (0.0, 0.3):
        data = outcomes(missing=missing)
        router = build_router("elo:prior=1e9").fit(data)
        estimate = router.predict(queries(data, router))
        np.testing.assert_allclose(np.ptp(estimate, axis=1), 0, atol=1e-5)


def test_without_similarity_weights_it_ranks_by_the_overall_means() -> None:
    data = outcomes(60)
    router = build_router("elo:gamma=1:prior=1e-6").fit(data)
    means = np.tile(data.mean_scores(), (60, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-5)


def test_the_most_similar_prompt_weighs_gamma_times_an_unrelated_one() -> None:
    data = outcomes(2, 2, num_features=3)
    data.embeddings[:] = np.eye(3, dtype=np.float32)[:2]
    router = build_router("elo:gamma=9").fit(data)
    weight = router._weights(np.array([[1, 0, 0], [0, 0.1, 0]], dtype=np.float32))
    np.testing.assert_allclose(weight, [[1, 1 / 9], [1 / 9, 1]], atol=1e-6)


def test_it_finds_the_specialist() -> None:
    data, unseen = outcomes(300, 2), outcomes(200, 2, seed=1)
    router = build_router("elo").fit(data)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


def test_a_model_that_always_wins_has_a_finite_strength() -> None:
    won, battles = np.array([[9.5, 0.5]]), np.array([[[0.0, 10.0], [10.0, 0.0]]])
    theta = bradley_terry(won, battles)
    np.testing.assert_allclose(theta[0, 0] - theta[0, 1], np.log(19), atol=1e-6)
    assert theta.sum() == pytest.approx(0)


def test_more_queries_than_a_block_are_estimated_like_few() -> None:
    data, many = outcomes(50, missing=0.3), outcomes(40, seed=2)
    router = build_router("elo").fit(data)
    halves = [
        router.predict(Queries(embeddings=many.embeddings[rows]))
        for rows in (slice(0, 7), slice(7, None))
    ]
    np.testing.assert_allclose(
        router.predict(queries(many, router)), np.concatenate(halves), atol=1e-6
    )


@pytest.mark.parametrize("setting", ["gamma=0.5", "gamma=inf", "prior=0", "prior=nan"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'elo': expected gamma >= 1 and prior > 0"):
        build_router(f"elo:{setting}")
