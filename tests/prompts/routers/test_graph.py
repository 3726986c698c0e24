from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.graph import edge_gradient, edges
from tests.prompts.routers.slopes import check_gradient
from tests.prompts.routers.tables import argmax_quality, crossed, outcomes, queries

SHAPES = ((3, 2), (4, 2), (8, 2), (2,))


def some_graph(rng: np.random.Generator) -> tuple[list[np.ndarray], tuple[np.ndarray, ...]]:
    parts = [rng.standard_normal(shape) for shape in SHAPES]
    return parts, (rng.standard_normal((3, 4)), rng.standard_normal((6, 8)), rng.random(3))


def test_an_edge_is_the_equation_of_the_module() -> None:
    (e, v, u, c), (message, both, base) = some_graph(np.random.default_rng(0))
    found = edges([e, v, u, c], message, both, base)
    for n in range(6):
        prompt = np.maximum(both[n, :4] @ u[:4] + both[n, 4:] @ u[4:] + c, 0)
        for k in range(3):
            model = e[k] + message[k] @ v
            np.testing.assert_allclose(found[n, k], base[k] + model @ prompt)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    parts, graph = some_graph(rng)
    y, known = rng.random((6, 3)), (rng.random((6, 3)) < 0.7).astype(np.float64)

    def loss(p: list[np.ndarray]) -> float:
        z = edges(p, *graph)
        return float(((np.logaddexp(0, z) - y * z) * known).sum() / 6)

    check_gradient(loss, parts, edge_gradient(parts, *graph, y_NK=y, known_NK=known))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_without_any_pass_it_is_the_model_means(missing: float) -> None:
    data = outcomes(missing=missing)
    router = build_router("graph:epochs=0").fit(data)
    means = np.tile(data.mean_scores(), (80, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-5)


def test_it_finds_the_specialist() -> None:
    data, unseen = outcomes(400, 4, num_domains=4), outcomes(200, 4, num_domains=4, seed=1)
    router = build_router("graph").fit(data)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


def test_tasks_tell_apart_what_no_line_does() -> None:
    data, unseen = crossed(600), crossed(200, seed=1)
    router = build_router("graph:rate=0.01:tasks=4:decay=0").fit(data)
    assert argmax_quality(router.predict(queries(unseen, router)), unseen) > 0.9


def test_on_noise_it_stays_near_the_means() -> None:
    unseen, off = outcomes(100, seed=1), []
    for seed in range(4):
        data = outcomes(600, skill=0.5, seed=seed + 10)
        router = build_router("graph").fit(data, seed=seed)
        off.append(router.predict(queries(unseen, router)) - data.scores.mean(axis=0))
    assert np.sqrt(np.square(off).mean()) < 0.15


@pytest.mark.parametrize("setting", ["dim=0", "tasks=0", "rate=0", "decay=-1", "epochs=-1"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'graph': expected dim >= 1"):
        build_router(f"graph:{setting}")
