from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Queries, TrainingSet
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import change, outcomes, queries


def on_circle(cosines: list[float], scores: list[list[float]]) -> TrainingSet:
    """Training prompts at these cosines from the query (1, 0)."""
    cosine = np.array(cosines)
    rows = np.column_stack([cosine, np.sqrt(1 - cosine**2)])
    data = outcomes(len(cosine), len(scores[0]))
    return change(
        data, embeddings=rows.astype(np.float32), scores=np.array(scores, dtype=np.float32)
    )


EAST = Queries(embeddings=np.array([[1.0, 0.0]], dtype=np.float32))
NAN = float("nan")


def east(spec: str, cosines: list[float], scores: list[list[float]]) -> list[float]:
    estimate: list[float] = (
        build_router(spec).fit(on_circle(cosines, scores)).predict(EAST)[0].tolist()
    )
    return estimate


def reference(data: TrainingSet, query: np.ndarray, k: int, weighting: str, shrink: float) -> list:
    """One query, sums written out. For tables where no two similarities are equal and k < N."""
    similarity = data.embeddings.astype(np.float64) @ query.astype(np.float64)
    order = np.argsort(-similarity)
    boundary, top = similarity[order[k]], similarity[order[0]]
    estimate = []
    for m in range(len(data.models)):
        total = weight = 0.0
        for i in order[:k]:
            if np.isfinite(data.scores[i, m]):
                w = (similarity[i] - boundary) / (top - boundary)
                w = w if weighting == "triangular" else 1.0
                total, weight = total + w * float(data.scores[i, m]), weight + w
        mean = float(np.nanmean(data.scores[:, m].astype(np.float64)))
        estimate.append((total + shrink * mean) / (weight + shrink))
    return estimate


@given(
    st.integers(1, 38),
    st.sampled_from(["triangular", "uniform"]),
    st.sampled_from([0.5, 3.0]),
    st.integers(0, 100),
)
def test_it_is_the_weighted_mean_of_its_docstring(
    k: int, weighting: str, shrink: float, seed: int
) -> None:
    data, unseen = outcomes(40, missing=0.3, seed=seed), outcomes(4, seed=seed + 1)
    router = build_router(f"knn:k={k}:weighting={weighting}:shrink={shrink}").fit(data)
    similarity = -np.sort(-(unseen.embeddings @ data.embeddings.T), axis=1)
    assume((similarity[:, k - 1] - similarity[:, k]).min() > 2e-5)  # closer ones count as equal
    expected = [reference(data, q, k, weighting, shrink) for q in unseen.embeddings]
    np.testing.assert_allclose(router.predict(queries(unseen, router)), expected, atol=2e-4)


def test_triangular_weights_fall_to_the_first_prompt_outside() -> None:
    # Outside stands 0.0, so the weights are the cosines over the highest: 1, 3/4, 1/2.
    scores = [[1, 0], [0, 1], [1, 1], [0, 0]]
    estimate = east("knn:k=3:shrink=0", [0.8, 0.6, 0.4, 0.0], scores)
    np.testing.assert_allclose(estimate, [1.5 / 2.25, 1.25 / 2.25], atol=1e-5)


def test_the_mean_weighs_like_shrink_neighbours() -> None:
    # The mean scores are 1/4 and 1/2; the only neighbour has weight 1.
    scores = [[1, 0], [0, 0], [0, 1], [0, 1]]
    estimate = east("knn:k=1:shrink=3", [0.9, 0.5, 0.3, 0.1], scores)
    np.testing.assert_allclose(estimate, [(1 + 3 / 4) / 4, (0 + 3 / 2) / 4], atol=1e-5)


@pytest.mark.parametrize("weighting", ["triangular", "uniform"])
def test_one_neighbour_without_shrinkage_gives_a_training_prompt_its_own_scores(
    weighting: str,
) -> None:
    data = outcomes(60)
    data = change(data, scores=np.random.default_rng(0).random((60, 3)).astype(np.float32))
    router = build_router(f"knn:k=1:shrink=0:weighting={weighting}").fit(data)
    np.testing.assert_allclose(router.predict(queries(data, router)), data.scores, atol=1e-6)


@pytest.mark.parametrize("k", [60, 61, 5000])
def test_everybody_weighed_alike_gives_the_means(k: int) -> None:
    data = outcomes(60, missing=0.3)
    router = build_router(f"knn:k={k}:weighting=uniform").fit(data)
    means = np.tile(np.nanmean(data.scores.astype(np.float64), axis=0), (60, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-6)


def test_heavy_shrinkage_gives_the_means() -> None:
    data = outcomes(60, missing=0.3)
    router = build_router("knn:shrink=1e9").fit(data)
    means = np.tile(np.nanmean(data.scores.astype(np.float64), axis=0), (60, 1))
    np.testing.assert_allclose(router.predict(queries(data, router)), means, atol=1e-6)


@pytest.mark.parametrize("weighting", ["triangular", "uniform"])
def test_copies_of_the_nearest_prompt_count_alike_however_few_are_asked_for(
    weighting: str,
) -> None:
    scores = [[1.0, 0.0]] * 2 + [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    spec = f"knn:k=1:shrink=0:weighting={weighting}"
    estimate = east(spec, [0.9, 0.9, 0.9, 0.2, 0.1], scores)
    np.testing.assert_allclose(estimate, [2 / 3, 1 / 3], atol=1e-6)


def test_a_neighbour_the_model_was_not_run_on_is_left_out() -> None:
    scores = [[NAN, 1], [1, 0], [0, 0], [0, 1]]
    estimate = east("knn:k=2:shrink=0:weighting=uniform", [0.9, 0.8, 0.2, 0.1], scores)
    np.testing.assert_allclose(estimate, [1.0, 0.5], atol=1e-6)


def test_where_no_neighbour_is_known_the_mean_stands() -> None:
    scores = [[NAN, 1], [NAN, 0], [0, 0], [1, 1], [1, 1]]
    estimate = east("knn:k=2:shrink=0:weighting=uniform", [0.9, 0.8, 0.3, 0.2, 0.1], scores)
    np.testing.assert_allclose(estimate, [2 / 3, 0.5], atol=1e-6)


def test_the_estimate_does_not_jump_where_neighbours_change() -> None:
    angle = np.linspace(0, 2 * np.pi, 21)[:-1]
    rows = np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    data = outcomes(20, 2, missing=0.2)
    data = change(data, embeddings=rows)
    turn = np.linspace(0, 2 * np.pi, 5000)
    around = Queries(embeddings=np.column_stack([np.cos(turn), np.sin(turn)]).astype(np.float32))

    def greatest_jump(weighting: str) -> float:
        router = build_router(f"knn:k=4:shrink=1:weighting={weighting}").fit(data)
        return float(np.abs(np.diff(router.predict(around), axis=0)).max())

    assert greatest_jump("triangular") < 0.02
    assert greatest_jump("uniform") > 0.1


def test_more_queries_than_a_block_are_estimated_like_few() -> None:
    data, many = outcomes(50), outcomes(2100, seed=2)
    router = build_router("knn:k=7").fit(data)
    asked = queries(many, router)
    halves = [
        router.predict(Queries(embeddings=asked.embeddings[rows]))
        for rows in (slice(0, 900), slice(900, None))
    ]
    np.testing.assert_allclose(router.predict(asked), np.concatenate(halves), atol=1e-6)


@pytest.mark.parametrize("spec", ["knn:k=0", "knn:k=-3", "knn:shrink=-1", "knn:shrink=nan"])
def test_impossible_settings_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=r"router 'knn': expected k >= 1 and"):
        build_router(spec)
