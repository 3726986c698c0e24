from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.bandit import LinearArms
from crossroads.prompts.routers import build_router, router_class
from crossroads.prompts.routers.linucb import LinUpperConfidence
from tests.prompts.routers.tables import argmax_quality, outcomes, queries


def fitted(spec: str = "linucb", num_prompts: int = 300) -> LinUpperConfidence:
    router = build_router(spec).fit(outcomes(num_prompts, 2))
    assert isinstance(router, LinUpperConfidence)
    return router


def test_it_says_that_it_learns_from_what_it_chose() -> None:
    assert router_class("linucb").needs == "bandit feedback"


def test_choosing_maximises_the_bound_of_the_module() -> None:
    router, unseen = fitted("linucb:alpha=0.7"), outcomes(30, 2, seed=1)
    z = router._arms.features(unseen.embeddings)
    for row, embedding in zip(z, unseen.embeddings, strict=True):
        bound = [
            theta @ row + 0.7 * np.sqrt(row @ inverse @ row)
            for theta, inverse in zip(router._weights, router._arms.inverse, strict=True)
        ]
        assert router.choose(embedding) == f"model-{np.argmax(bound)}"


def test_a_model_never_asked_is_asked_before_one_known_to_be_bad() -> None:
    router = build_router("linucb:alpha=1").fit(outcomes(2, 2))
    assert isinstance(router, LinUpperConfidence)
    x = outcomes(1, 2, seed=1).embeddings[0]
    for _ in range(50):
        router.update(x, "model-0", 0.0)
    assert router.choose(x) == "model-1"


def test_regret_grows_ever_more_slowly_on_a_linear_problem() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    chance = 0.5 + 0.45 * rows @ np.linalg.qr(rng.normal(size=(5, 3)))[0]
    data = outcomes(3000, 3, num_features=5)
    data.embeddings[:], data.scores[:] = rows, rng.random(chance.shape) < chance
    router = LinUpperConfidence(alpha=1.0)
    arms = LinearArms.start(data.embeddings, 3, components=5, penalty=1.0)
    z, regret = arms.features(data.embeddings), np.empty(3000)
    for step, row in enumerate(rng.permutation(3000)):
        arm = int(router.index(*arms.judge(z[row]), None).argmax())
        regret[step] = chance[row].max() - chance[row, arm]
        arms.observe(z[row], arm, float(data.scores[row, arm]))
    at_random = (chance.max(axis=1) - chance.mean(axis=1)).mean()
    assert regret[-1000:].mean() < 0.5 * regret[:300].mean()
    assert regret[-1000:].mean() < 0.15 * at_random


def test_it_finds_the_specialist_from_one_score_a_prompt() -> None:
    unseen = outcomes(200, 2, seed=1)
    router = fitted(num_prompts=600)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


def test_updates_move_the_estimates_towards_the_reward() -> None:
    router, unseen = fitted(), outcomes(1, 2, seed=1)
    before = router.predict(queries(unseen, router))[0, 0]
    for _ in range(20):
        router.update(unseen.embeddings[0], "model-0", 1.0 - round(before))
    after = router.predict(queries(unseen, router))[0, 0]
    assert abs(after - before) > 0.1
    assert (after > before) == (before < 0.5)


def test_a_restored_router_goes_on_learning() -> None:
    router, x = fitted(), outcomes(1, 2, seed=1).embeddings[0]
    copy = LinUpperConfidence.restore(
        models=router.models, settings=router.settings, arrays=router.state()
    )
    for one in (router, copy):
        one.update(x, "model-0", 0.3)
    np.testing.assert_array_equal(router._weights, copy._weights)


def test_a_wrong_embedding_is_refused() -> None:
    with pytest.raises(InputError, match="expected an embedding of 16"):
        fitted().choose(np.ones(4))


@pytest.mark.parametrize("setting", ["alpha=-1", "alpha=nan", "components=0", "penalty=0"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'linucb': expected alpha >= 0"):
        build_router(f"linucb:{setting}")
