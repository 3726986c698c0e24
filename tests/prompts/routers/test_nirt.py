from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Queries
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.nirt import interaction, interaction_gradient
from tests.prompts.routers.slopes import check_gradient
from tests.prompts.routers.tables import argmax_quality, outcomes, queries

SHAPES = ((4, 2), (4, 2), (3, 2), (2, 3), (3,), (3,), (3,))


def some_parts(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal(shape) for shape in SHAPES]


def test_the_logit_is_the_equation_of_the_module() -> None:
    rng = np.random.default_rng(0)
    q, d, theta, w, c, v, bias = parts = some_parts(rng)
    x = rng.standard_normal((5, 4))
    found = interaction(parts, x)
    for n, row in enumerate(x):
        relevance = 1 / (1 + np.exp(-(row @ q)))
        for k in range(3):
            h = relevance * (theta[k] - row @ d)
            expected = np.abs(v) @ np.tanh(np.abs(w).T @ h + c) + bias[k]
            np.testing.assert_allclose(found[n, k], expected)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((6, 4)), rng.random((6, 3))
    known = (rng.random((6, 3)) < 0.7).astype(np.float64)

    def loss(p: list[np.ndarray]) -> float:
        z = interaction(p, x)
        return float(((np.logaddexp(0, z) - y * z) * known).sum() / len(x))

    parts = some_parts(rng)
    check_gradient(loss, parts, interaction_gradient(parts, x, y, known))


def test_more_of_any_skill_never_harms() -> None:
    rng = np.random.default_rng(2)
    parts, x = some_parts(rng), rng.standard_normal((20, 4))
    before = interaction(parts, x)
    for skill in range(2):
        theta = parts[2].copy()
        theta[:, skill] += 0.5
        assert (interaction([*parts[:2], theta, *parts[3:]], x) >= before).all()


def test_it_finds_the_specialist() -> None:
    data, unseen = outcomes(500, 3, num_domains=3), outcomes(200, 3, num_domains=3, seed=1)
    router = build_router("nirt").fit(data)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


def test_on_noise_it_stays_near_the_means() -> None:
    data, unseen = outcomes(600, skill=0.5), outcomes(100, seed=1)
    router = build_router("nirt").fit(data)
    off = router.predict(queries(unseen, router)) - data.scores.mean(axis=0)
    assert np.sqrt(np.square(off).mean()) < 0.1


def test_more_prompts_than_a_block_are_estimated_like_few() -> None:
    data, many = outcomes(60), outcomes(1100, seed=2)
    router = build_router("nirt:epochs=2").fit(data)
    halves = [
        router.predict(Queries(embeddings=many.embeddings[rows]))
        for rows in (slice(0, 500), slice(500, None))
    ]
    np.testing.assert_allclose(
        router.predict(queries(many, router)), np.concatenate(halves), atol=1e-9
    )


@pytest.mark.parametrize("setting", ["skills=0", "hidden=0", "rate=0", "decay=-1", "epochs=-1"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'nirt': expected skills >= 1"):
        build_router(f"nirt:{setting}")
