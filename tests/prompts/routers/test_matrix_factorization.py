from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Queries
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.matrix_factorization import _gradient
from tests.prompts.routers.tables import change, outcomes, queries

NAME = "matrix-factorization"


def logit(probability: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(probability / (1 - probability)))


@pytest.mark.parametrize("rank", [1, 2])
def test_deviations_have_the_rank_asked_for(rank: int) -> None:
    data = outcomes(200, 5, num_domains=4)
    router = build_router(f"{NAME}:rank={rank}:rate=0.01").fit(data)
    value = logit(router.predict(queries(data, router)))
    singular = np.linalg.svd(value - value.mean(axis=0), compute_uv=False)
    assert singular[rank - 1] > 0.01
    assert singular[rank] < 1e-4 * singular[0]


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_without_any_pass_it_is_the_model_means(missing: float) -> None:
    data = outcomes(missing=missing)
    router = build_router(f"{NAME}:epochs=0").fit(data)
    means = np.tile(np.nanmean(data.scores.astype(np.float64), axis=0), (80, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-5)


def test_opposite_prompts_deviate_oppositely() -> None:
    data = outcomes(150)
    router = build_router(f"{NAME}:rate=0.01").fit(data)
    centre = data.embeddings.mean(axis=0)
    away = data.embeddings[:20] - centre
    plus, middle, minus = (
        logit(router.predict(Queries(embeddings=centre + sign * away))) for sign in (1, 0, -1)
    )
    np.testing.assert_allclose(plus - middle, middle - minus, atol=1e-4)
    assert np.abs(plus - middle).max() > 0.1


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 4)), rng.random((6, 3))
    known = (rng.random((6, 3)) < 0.7).astype(np.float64)
    parts = [rng.standard_normal(shape) for shape in ((4, 2), (2, 3), (3,))]

    def loss(p: list[np.ndarray]) -> float:
        z = x @ p[0] @ p[1] + p[2]
        return float(((np.logaddexp(0, z) - y * z) * known).sum() / len(x))

    found = _gradient(parts, x, y, known)
    for n, part in enumerate(parts):
        for place in np.ndindex(part.shape):
            up, down = ([p.copy() for p in parts] for _ in range(2))
            up[n][place] += 1e-6
            down[n][place] -= 1e-6
            slope = (loss(up) - loss(down)) / 2e-6
            np.testing.assert_allclose(found[n][place], slope, atol=1e-5)


def test_estimates_are_probabilities_even_where_a_model_never_fails() -> None:
    data = outcomes(100)
    scores = data.scores.copy()
    scores[:, 0], scores[:, 1] = 1.0, 0.0
    data = change(data, scores=scores)
    router = build_router(NAME).fit(data)
    estimate = router.predict(queries(data, router))
    assert estimate.min() > 0.0
    assert estimate.max() < 1.0
    assert estimate[:, 0].min() > 0.95
    assert estimate[:, 1].max() < 0.05


def test_on_noise_it_stays_near_the_means() -> None:
    data, unseen = outcomes(300, skill=0.5), outcomes(100, seed=1)
    router = build_router(NAME).fit(data)
    off = router.predict(queries(unseen, router)) - data.scores.mean(axis=0)
    assert np.sqrt(np.square(off).mean()) < 0.1


def test_too_few_prompts_to_hold_any_out_give_the_means() -> None:
    scores = np.array([[1, 0, 1], [0, 0.5, 1], [1, 0, 0]], dtype=np.float32)
    data = change(outcomes(3), scores=scores)
    router = build_router(NAME).fit(data)
    estimate = router.predict(queries(data, router))
    np.testing.assert_allclose(estimate, np.tile(scores.mean(axis=0), (3, 1)), atol=1e-6)


@pytest.mark.parametrize("setting", ["rank=0", "rate=0", "rate=nan", "decay=-1"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=f"router '{NAME}': expected rank >= 1"):
        build_router(f"{NAME}:{setting}")
