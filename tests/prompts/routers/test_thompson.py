from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.thompson import ThompsonSampling
from tests.prompts.routers.tables import argmax_quality, outcomes, queries


def fitted(spec: str = "thompson", num_prompts: int = 300) -> ThompsonSampling:
    router = build_router(spec).fit(outcomes(num_prompts, 2))
    assert isinstance(router, ThompsonSampling)
    return router


def test_drawing_rewards_is_drawing_weights_from_the_posterior() -> None:
    router = fitted("thompson:spread=0.4", num_prompts=60)
    z = router._arms.features(outcomes(1, 2, seed=1).embeddings)[0]
    rng = np.random.default_rng(0)
    draws = np.array([router.index(*router._arms.judge(z), rng) for _ in range(4000)])
    for k in range(2):
        covariance = 0.4**2 * router._arms.inverse[k]
        weights = rng.multivariate_normal(router._weights[k], covariance, size=4000) @ z
        assert draws[:, k].mean() == pytest.approx(weights.mean(), abs=0.01)
        assert draws[:, k].std() == pytest.approx(weights.std(), rel=0.06)


def test_models_that_may_be_best_are_asked_the_sure_loser_is_not() -> None:
    router, x = fitted(num_prompts=4), outcomes(1, 2, seed=1).embeddings[0]
    rng = np.random.default_rng(0)
    early = {router.choose(x, rng) for _ in range(200)}
    for _ in range(300):
        router.update(x, "model-0", 1.0)
        router.update(x, "model-1", 0.0)
    late = {router.choose(x, rng) for _ in range(200)}
    assert early == {"model-0", "model-1"}
    assert late == {"model-0"}


def test_without_spread_it_is_greedy() -> None:
    router, unseen = fitted("thompson:spread=0"), outcomes(30, 2, seed=1)
    best = router.predict(queries(unseen, router)).argmax(axis=1)
    rng = np.random.default_rng(0)
    chosen = [router.choose(x, rng) for x in unseen.embeddings]
    assert chosen == [f"model-{k}" for k in best]


def test_later_choices_earn_more_than_earlier_ones() -> None:
    data = outcomes(2000, 4, num_domains=4)
    router = fitted()
    arms = router._arms.start(data.embeddings, 4, components=8, penalty=1.0)
    rng = np.random.default_rng(0)
    rewards = arms.replay(data, lambda e, w: router.index(e, w, rng), rng)
    assert rewards[-500:].mean() > rewards[:100].mean() + 0.1
    assert rewards[-500:].mean() > data.scores.mean(axis=0).max() + 0.3


def test_it_finds_the_specialist_from_one_score_a_prompt() -> None:
    unseen = outcomes(200, 2, seed=1)
    router = fitted(num_prompts=600)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


@pytest.mark.parametrize("setting", ["spread=-1", "spread=nan", "components=0", "penalty=0"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'thompson': expected spread >= 0"):
        build_router(f"thompson:{setting}")


def test_a_draw_needs_a_generator() -> None:
    with pytest.raises(UsageError, match=r"give choose\(\) a generator"):
        fitted().choose(outcomes(1, 2).embeddings[0])
