from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import argmax_quality, outcomes, queries


def test_scores_are_the_sum_of_the_module_written_out() -> None:
    data, unseen = outcomes(60, 4, num_domains=4), outcomes(10, 4, num_domains=4, seed=1)
    router = build_router("avengers:num_clusters=6:nearest=3:beta=2").fit(data)
    centres = router.state()["centres"]
    estimate = router.predict(queries(unseen, router))
    worth = router.state()["worth"]
    for row, query in zip(estimate, unseen.embeddings.astype(np.float64), strict=True):
        distance = 1 - centres @ (query / np.linalg.norm(query))
        near = np.argsort(distance)[:3]
        p = np.exp(-2 * distance[near])
        expected = (p / p.sum()) @ worth[near]
        np.testing.assert_allclose(row, expected, atol=1e-9)
    rank = np.round(1 / worth - 0.1).astype(int)
    np.testing.assert_allclose(worth, 1 / (rank + 0.1))
    np.testing.assert_array_equal(np.sort(rank, axis=1), np.tile(np.arange(4), (len(worth), 1)))


def test_the_model_of_the_highest_mean_in_a_cluster_ranks_first() -> None:
    data = outcomes(300, 2, spread=0.1)
    router = build_router("avengers:num_clusters=2:nearest=1").fit(data)
    estimate = router.predict(queries(data, router))
    for domain in ("algebra", "law"):
        rows = data.domains == domain
        means = data.scores[rows].mean(axis=0)
        assert (estimate[rows].argmax(axis=1) == means.argmax()).mean() > 0.9


def test_it_finds_the_specialist() -> None:
    data, unseen = outcomes(800, 4, num_domains=4), outcomes(200, 4, num_domains=4, seed=1)
    router = build_router("avengers:num_clusters=8:nearest=2").fit(data)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


@pytest.mark.parametrize("setting", ["num_clusters=0", "nearest=0", "beta=-1", "beta=inf"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'avengers': expected num_clusters >= 1"):
        build_router(f"avengers:{setting}")
