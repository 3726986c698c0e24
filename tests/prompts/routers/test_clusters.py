from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Queries
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import change, outcomes, queries

NAN = float("nan")
# Two distinct prompts, hence two clusters: three copies of the first, two of the second.
TWO_PLACES = change(
    outcomes(5),
    embeddings=np.array([[1, 0]] * 3 + [[0, 1]] * 2, dtype=np.float32),
    scores=np.array([[1, 0, 0], [1, NAN, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]], dtype=np.float32),
)
# Means 2/5, 1/2, 2/5. Shrunk by 2, as in (sum + 2 mean) / (number + 2):
FIRST = [(2 + 0.8) / 5, (1 + 1) / 4, (0 + 0.8) / 5]
SECOND = [(0 + 0.8) / 4, (1 + 1) / 4, (2 + 0.8) / 4]


def test_the_nearest_cluster_gives_its_shrunk_averages() -> None:
    router = build_router("clusters:nearest=1:shrink=2").fit(TWO_PLACES)
    estimate = router.predict(queries(TWO_PLACES, router))
    np.testing.assert_allclose(estimate, [FIRST] * 3 + [SECOND] * 2, rtol=1e-6)


def test_clusters_are_weighed_by_the_softmax_of_their_distance() -> None:
    router = build_router("clusters:nearest=2:shrink=2:beta=3").fit(TWO_PLACES)
    query = np.array([[0.8, 0.6]], dtype=np.float32)
    # Cosine distances 0.2 and 0.4.
    weight = 1 / (1 + np.exp(-3 * (0.4 - 0.2)))
    expected = weight * np.array(FIRST) + (1 - weight) * np.array(SECOND)
    np.testing.assert_allclose(router.predict(Queries(embeddings=query))[0], expected, rtol=1e-5)


def test_clusters_equally_near_both_take_part() -> None:
    router = build_router("clusters:nearest=1:shrink=2").fit(TWO_PLACES)
    middle = np.array([[np.sqrt(0.5), np.sqrt(0.5)]], dtype=np.float32)
    expected = (np.array(FIRST) + SECOND) / 2
    np.testing.assert_allclose(router.predict(Queries(embeddings=middle))[0], expected, rtol=1e-6)


def test_published_estimates_are_one_over_rank_plus_a_tenth() -> None:
    router = build_router("clusters:nearest=1:shrink=2:estimate=rank").fit(TWO_PLACES)
    estimate = router.predict(queries(TWO_PLACES, router))[[0, 4]]
    first, second, third = 1 / 0.1, 1 / 1.1, 1 / 2.1
    np.testing.assert_allclose(estimate, [[first, second, third], [third, second, first]])


def test_without_sharpness_all_clusters_asked_count_alike() -> None:
    router = build_router("clusters:beta=0:shrink=2").fit(TWO_PLACES)
    estimate = router.predict(queries(TWO_PLACES, router))
    np.testing.assert_allclose(estimate, [(np.array(FIRST) + SECOND) / 2] * 5, rtol=1e-6)


@pytest.mark.parametrize("spec", ["clusters:num_clusters=1", "clusters:shrink=1e9"])
def test_one_cluster_or_heavy_shrinkage_gives_the_means(spec: str) -> None:
    data = outcomes(60, missing=0.3)
    router = build_router(spec).fit(data)
    means = np.tile(np.nanmean(data.scores.astype(np.float64), axis=0), (60, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-6)


def test_the_length_of_an_embedding_does_not_matter() -> None:
    data = outcomes(60)
    router = build_router("clusters:num_clusters=8:nearest=3").fit(data)
    stretched = change(
        data, embeddings=data.embeddings * np.linspace(1, 9, 60, dtype=np.float32)[:, None]
    )
    np.testing.assert_allclose(
        router.predict(queries(stretched, router)),
        router.predict(queries(data, router)),
        atol=1e-6,
    )


def test_no_more_clusters_are_kept_than_asked_for() -> None:
    data = outcomes(60)
    for num_clusters in (1, 5, 64):
        state = build_router(f"clusters:num_clusters={num_clusters}").fit(data).state()
        assert 1 <= len(state["centres"]) <= num_clusters
        np.testing.assert_allclose(np.linalg.norm(state["centres"], axis=1), 1.0)


@pytest.mark.parametrize("setting", ["num_clusters=0", "nearest=0", "beta=-1", "shrink=-0.5"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'clusters': expected"):
        build_router(f"clusters:{setting}")
