from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import argmax_quality, change, crossed, outcomes, queries


def means(scores: np.ndarray, num_rows: int) -> np.ndarray:
    return np.tile(np.nanmean(scores.astype(np.float64), axis=0), (num_rows, 1))


def test_it_learns_what_no_linear_estimate_can() -> None:
    data, unseen = crossed(1000), crossed(seed=1)
    quality = {
        spec: argmax_quality(router.predict(queries(unseen, router)), unseen)
        for spec in ("boosting", "ridge")
        if (router := build_router(spec).fit(data))
    }
    assert quality["boosting"] > 0.9
    assert quality["ridge"] < 0.65


def test_too_few_prompts_for_a_tree_give_the_means() -> None:
    data = outcomes(39)  # a leaf holds at least twenty
    router = build_router("boosting").fit(data)
    expected = means(data.scores, 39)
    np.testing.assert_allclose(router.predict(queries(data, router)), expected, atol=1e-6)


def test_a_model_that_was_seldom_run_does_not_disturb_the_others() -> None:
    data = outcomes(200)
    data.scores[19:, 2] = np.nan
    router = build_router("boosting").fit(data)
    estimate = router.predict(queries(data, router))
    assert np.isfinite(estimate).all()
    assert (estimate[:, :2].std(axis=0) > 0.1).all()


def test_no_more_trees_are_kept_than_asked_for() -> None:
    state = build_router("boosting:trees=3").fit(outcomes(200)).state()
    trees_of_each = np.bincount(state["trees_owner"], minlength=3)
    assert trees_of_each.min() >= 1
    assert trees_of_each.max() <= 3


def test_on_noise_it_stays_near_the_means() -> None:
    data, unseen = outcomes(300, skill=0.5), outcomes(100, seed=1)
    router = build_router("boosting").fit(data)
    off = router.predict(queries(unseen, router)) - means(data.scores, 100)
    assert np.sqrt(np.square(off).mean()) < 0.1


def test_scores_that_never_vary_are_estimated_exactly() -> None:
    data = change(outcomes(200), scores=np.full((200, 3), 0.25, dtype=np.float32))
    router = build_router("boosting").fit(data)
    np.testing.assert_allclose(router.predict(queries(data, router)), 0.25, atol=1e-9)


@pytest.mark.parametrize("setting", ["trees=0", "rate=0", "rate=1.5", "rate=nan", "leaves=1"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'boosting': expected trees >= 1"):
        build_router(f"boosting:{setting}")
