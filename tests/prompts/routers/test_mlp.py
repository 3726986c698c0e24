from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.mlp import _gradient
from tests.prompts.routers.tables import argmax_quality, change, crossed, outcomes, queries


def test_it_learns_what_no_linear_estimate_can() -> None:
    data, unseen = crossed(), crossed(seed=1)
    quality = {
        spec: argmax_quality(router.predict(queries(unseen, router)), unseen)
        for spec in ("mlp", "ridge")
        if (router := build_router(spec).fit(data))
    }
    assert quality["mlp"] > 0.9
    assert quality["ridge"] < 0.65


def test_without_any_pass_it_is_the_model_means() -> None:
    data = outcomes(missing=0.2)
    router = build_router("mlp:epochs=0").fit(data)
    means = np.tile(np.nanmean(data.scores.astype(np.float64), axis=0), (80, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-9)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((6, 3))
    known = (rng.random((6, 3)) < 0.7).astype(np.float64)
    layers = [rng.standard_normal(shape) for shape in ((4, 5), (5,), (5, 3))]

    def loss(p: list[np.ndarray]) -> float:
        output = np.maximum(x @ p[0] + p[1], 0.0) @ p[2]
        return float((np.square(output - y) * known).sum() / 2 / len(x))

    found = _gradient(layers, x, y, known)
    for n, layer in enumerate(layers):
        for place in np.ndindex(layer.shape):
            up, down = ([p.copy() for p in layers] for _ in range(2))
            up[n][place] += 1e-6
            down[n][place] -= 1e-6
            slope = (loss(up) - loss(down)) / 2e-6
            np.testing.assert_allclose(found[n][place], slope, atol=1e-6)


def test_on_noise_it_stays_near_the_means() -> None:
    data, unseen = outcomes(300, skill=0.5), outcomes(100, seed=1)
    router = build_router("mlp").fit(data)
    off = router.predict(queries(unseen, router)) - data.scores.mean(axis=0)
    assert np.sqrt(np.square(off).mean()) < 0.1


def test_too_few_prompts_to_hold_any_out_give_the_means() -> None:
    data = outcomes(6)  # 15 % of six are none
    router = build_router("mlp").fit(data)
    means = np.tile(data.scores.mean(axis=0), (6, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-6)


def test_a_model_that_was_seldom_run_is_not_pulled_to_zero() -> None:
    data = change(outcomes(200), scores=np.ones((200, 3), dtype=np.float32))
    data.scores[5:, 2] = np.nan
    router = build_router("mlp").fit(data)
    np.testing.assert_allclose(router.predict(queries(data, router)), 1.0, atol=1e-5)


def test_the_seed_draws_another_network() -> None:
    data = crossed(100)
    one, other = (build_router("mlp").fit(data, seed=seed) for seed in (0, 1))
    assert (one.state()["layer0"] != other.state()["layer0"]).any()


@pytest.mark.parametrize("setting", ["hidden=0", "rate=0", "rate=nan", "decay=-1"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'mlp': expected hidden >= 1"):
        build_router(f"mlp:{setting}")
