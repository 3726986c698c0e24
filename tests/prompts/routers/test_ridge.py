from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.router import TrainingSet
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import change, outcomes, queries


def written_out(data: TrainingSet, unseen: TrainingSet, penalty: float) -> np.ndarray:
    """Solve the normal equations of each model on the prompts it was run on."""
    x = data.embeddings.astype(np.float64)
    centre = x.mean(axis=0)
    columns = []
    for m in range(len(data.models)):
        known = np.isfinite(data.scores[:, m])
        y = data.scores[known, m].astype(np.float64)
        a = x[known] - centre
        w = np.linalg.solve(a.T @ a + penalty * np.eye(x.shape[1]), a.T @ (y - y.mean()))
        columns.append(y.mean() + (unseen.embeddings - centre) @ w)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("penalty", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("missing", [0.0, 0.3, 0.7])
def test_it_solves_the_normal_equations(penalty: float, missing: float) -> None:
    data, unseen = outcomes(120, missing=missing), outcomes(30, seed=1)
    router = build_router(f"ridge:penalties={penalty}").fit(data)
    expected = written_out(data, unseen, penalty)
    np.testing.assert_allclose(router.predict(queries(unseen, router)), expected, atol=1e-4)


def test_a_huge_penalty_gives_the_means() -> None:
    data = outcomes(missing=0.3)
    router = build_router("ridge:penalties=1e9").fit(data)
    means = np.tile(np.nanmean(data.scores.astype(np.float64), axis=0), (80, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-6)


def test_the_penalty_is_heavy_on_noise_and_light_on_structure() -> None:
    noise, structure = outcomes(200, skill=0.5), outcomes(200, skill=1.0)

    def spread(data: TrainingSet) -> float:
        router = build_router("ridge").fit(data)
        return float(router.predict(queries(data, router)).std(axis=0).max())

    assert spread(noise) < 0.06
    assert spread(structure) > 0.3


def test_copies_of_a_prompt_do_not_make_the_penalty_light() -> None:
    data = outcomes(40, skill=0.5)
    copied = data.take(np.tile(np.arange(40), 5))
    router = build_router("ridge").fit(copied)
    light = build_router("ridge:penalties=1").fit(copied)
    asked = queries(data, router)
    assert router.predict(asked).std() < 0.7 * light.predict(asked).std()


def test_it_fits_a_linear_truth() -> None:
    data, unseen = outcomes(200), outcomes(50, seed=1)
    weights = np.random.default_rng(4).normal(scale=0.1, size=(16, 3))
    data, unseen = (
        change(d, scores=(0.5 + d.embeddings @ weights).astype(np.float32)) for d in (data, unseen)
    )
    router = build_router("ridge:penalties=1e-3").fit(data)
    np.testing.assert_allclose(router.predict(queries(unseen, router)), unseen.scores, atol=1e-3)


@pytest.mark.parametrize("penalty", ["-1", "0", "nan", "inf", "heavy"])
def test_impossible_penalties_are_refused(penalty: str) -> None:
    with pytest.raises(UsageError, match="router 'ridge': expected penalties as numbers > 0"):
        build_router(f"ridge:penalties={penalty}")
