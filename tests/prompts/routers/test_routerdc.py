from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Queries
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.routerdc import (
    DualContrastive,
    companions,
    model_contrast,
    prompt_contrast,
)
from tests.prompts.routers.slopes import check_gradient
from tests.prompts.routers.tables import argmax_quality, outcomes, queries


def test_the_model_contrast_is_its_sum_written_out() -> None:
    logit = np.array([[1.0, 0.5, -1.0], [0.2, 0.1, 0.0], [3.0, 1.0, 2.0]])
    good = np.array([[0.5, 0.25, -0.75], [0.0, 0.0, 0.0], [-0.5, -0.5, 1.0]])
    expected = 0.0
    for z, g in zip(logit, good, strict=True):
        bad = sum(np.exp(z[g < 0]))
        for t in np.flatnonzero(g > 0):
            expected -= g[t] * np.log(np.exp(z[t]) / (np.exp(z[t]) + bad))
    assert model_contrast(logit, good)[0] == pytest.approx(expected / 3)


def test_the_prompt_contrast_is_its_sum_written_out() -> None:
    logit = np.random.default_rng(0).normal(size=(4, 4))
    cluster, companion = np.array([0, 0, 1, 1]), np.array([1, 0, 3, 2])
    expected = 0.0
    for i in range(4):
        outside = sum(np.exp(logit[i, cluster != cluster[i]]))
        near = np.exp(logit[i, companion[i]])
        expected -= np.log(near / (near + outside))
    assert prompt_contrast(logit, cluster, companion)[0] == pytest.approx(expected / 4)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    router = DualContrastive(temperature=0.5, weight=0.7)
    x, good = rng.standard_normal((6, 4)), rng.standard_normal((6, 3))
    cluster = np.array([0, 0, 1, 1, 1, 2])
    companion = companions(cluster, rng)
    parts = [rng.standard_normal((4, 2)), rng.standard_normal((3, 2))]
    check_gradient(
        lambda p: router._slopes(p, x, good, cluster, companion)[0],
        parts,
        router._slopes(parts, x, good, cluster, companion)[1],
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_a_companion_is_another_of_the_cluster_where_there_is_one(labels: list[int]) -> None:
    cluster = np.array(labels)
    found = companions(cluster, np.random.default_rng(0))
    np.testing.assert_array_equal(cluster[found], cluster)
    alone = np.bincount(cluster)[cluster] == 1
    np.testing.assert_array_equal(found == np.arange(len(cluster)), alone)


def test_it_finds_the_specialist() -> None:
    data, unseen = outcomes(400, 4, num_domains=4), outcomes(200, 4, num_domains=4, seed=1)
    router = build_router("routerdc").fit(data)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


def test_the_length_of_a_prompt_does_not_matter() -> None:
    data = outcomes(200)
    router = build_router("routerdc").fit(data)
    longer = Queries(embeddings=data.embeddings * 3)
    np.testing.assert_allclose(
        router.predict(longer), router.predict(queries(data, router)), atol=1e-6
    )


def test_on_noise_it_stays_near_the_means() -> None:
    data, unseen = outcomes(600, skill=0.5), outcomes(100, seed=1)
    router = build_router("routerdc").fit(data)
    off = router.predict(queries(unseen, router)) - data.scores.mean(axis=0)
    assert np.sqrt(np.square(off).mean()) < 0.1


@pytest.mark.parametrize(
    "setting", ["dim=0", "clusters=0", "temperature=0", "weight=-1", "rate=0", "epochs=-1"]
)
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'routerdc': expected dim >= 1"):
        build_router(f"routerdc:{setting}")
