from __future__ import annotations

import numpy as np
import pytest

from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import outcomes, queries


def draws(num_models: int = 3, *, seed: int = 0, num_prompts: int = 3000) -> np.ndarray:
    router = build_router("random").fit(outcomes(10, num_models), seed=seed)
    return router.predict(queries(outcomes(num_prompts, num_models, seed=5), router))


@pytest.mark.parametrize("num_models", [2, 3, 5])
def test_each_model_gets_its_share_of_the_prompts(num_models: int) -> None:
    counts = np.bincount(draws(num_models).argmax(axis=1), minlength=num_models)
    share = 1 / num_models
    deviation = np.sqrt(3000 * share * (1 - share))
    assert (np.abs(counts - 3000 * share) < 4 * deviation).all()


def test_draws_are_uniform_and_independent_between_models() -> None:
    drawn = draws()
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.08


def test_the_same_prompt_draws_the_same() -> None:
    np.testing.assert_array_equal(draws(num_prompts=50), draws(num_prompts=50))


def test_other_prompts_draw_otherwise() -> None:
    assert len(np.unique(draws()[:, 0])) > 2990


def test_another_seed_draws_otherwise() -> None:
    agree = (draws(seed=0).argmax(axis=1) == draws(seed=1).argmax(axis=1)).mean()
    assert 0.28 < agree < 0.39


def test_what_was_learnt_does_not_matter() -> None:
    one = build_router("random").fit(outcomes(10), seed=3)
    other = build_router("random").fit(outcomes(60, seed=8), seed=3)
    asked = queries(outcomes(20), one)
    np.testing.assert_array_equal(one.predict(asked), other.predict(asked))
