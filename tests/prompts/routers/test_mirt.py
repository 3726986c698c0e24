from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.mirt import response, response_gradient
from tests.prompts.routers.slopes import check_gradient
from tests.prompts.routers.tables import argmax_quality, change, outcomes, queries


def some_parts(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal(shape) for shape in ((4, 2), (2,), (3, 2), (4,), (1,))]


def test_the_logit_is_the_equation_of_the_module() -> None:
    rng = np.random.default_rng(0)
    a, a0, theta, b, b0 = parts = some_parts(rng)
    x = rng.standard_normal((5, 4))
    for n, row in enumerate(x):
        for k in range(3):
            discrimination = [np.log(1 + np.exp(row @ a[:, r] + a0[r])) for r in range(2)]
            expected = np.dot(discrimination, theta[k]) - (row @ b + b0[0])
            np.testing.assert_allclose(response(parts, x)[n, k], expected)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((6, 4)), rng.random((6, 3))
    known = (rng.random((6, 3)) < 0.7).astype(np.float64)

    def loss(p: list[np.ndarray]) -> float:
        z = response(p, x)
        return float(((np.logaddexp(0, z) - y * z) * known).sum() / len(x))

    parts = some_parts(rng)
    check_gradient(loss, parts, response_gradient(parts, x, y, known))


def test_more_ability_never_harms() -> None:
    data = outcomes(200)
    router = build_router("mirt").fit(data)
    parts = router._parts
    abler = [*parts[:2], parts[2] + np.eye(3, parts[2].shape[1]), *parts[3:]]
    x = data.embeddings.astype(np.float64)
    assert (response(abler, x) > response(parts, x)).all()


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_without_any_pass_it_is_the_model_means(missing: float) -> None:
    data = outcomes(missing=missing)
    router = build_router("mirt:epochs=0").fit(data)
    means = np.tile(data.mean_scores(), (80, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-5)


def test_difficulty_is_learned_besides_who_is_better() -> None:
    data = outcomes(600, 2)
    chance = np.where((data.domains == "law")[:, None], [0.1, 0.4], [0.9, 0.6])
    drawn = np.random.default_rng(0).random(chance.shape) < chance
    data = change(data, scores=drawn.astype(np.float32))
    router = build_router("mirt").fit(data)
    estimate = router.predict(queries(data, router))
    hard, easy = (estimate[data.domains == d].mean(axis=0) for d in ("law", "algebra"))
    assert easy.mean() - hard.mean() > 0.3
    assert easy[0] > easy[1]
    assert hard[0] < hard[1]


def test_it_finds_the_specialist() -> None:
    data, unseen = outcomes(400, 4, num_domains=4), outcomes(200, 4, num_domains=4, seed=1)
    router = build_router("mirt").fit(data)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


@pytest.mark.parametrize("setting", ["dims=0", "rate=0", "rate=nan", "decay=-1", "epochs=-1"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'mirt': expected dims >= 1"):
        build_router(f"mirt:{setting}")
