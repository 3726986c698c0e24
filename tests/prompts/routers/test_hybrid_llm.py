from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Queries, TrainingSet
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.hybrid_llm import (
    HybridChoice,
    at_least,
    averaged,
    lines,
    mean_difference,
    nearest,
)
from tests.prompts.routers.tables import argmax_quality, change, outcomes, queries

NAN = float("nan")


def test_a_label_says_who_is_at_most_t_worse() -> None:
    gap = np.array([[0.5, -0.2, 0.0, NAN]])
    np.testing.assert_array_equal(at_least(gap, 0.0), [[1, 0, 1, NAN]])
    np.testing.assert_array_equal(at_least(gap, 0.2), [[1, 1, 1, NAN]])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_mean_difference_is_over_all_pairs(values: list[float]) -> None:
    y = np.array(values)
    expected = np.abs(y[:, None] - y[None, :]).mean()
    assert mean_difference(y) == pytest.approx(expected, abs=1e-9)


def test_several_answers_are_those_to_the_nearest_prompts() -> None:
    data = outcomes(40, missing=0.3)
    near = nearest(data.embeddings, 5)
    similarity = data.embeddings @ data.embeddings.T
    np.fill_diagonal(similarity, np.inf)
    expected = np.argsort(-similarity, axis=1)[:, :5]
    np.testing.assert_array_equal(np.sort(near, axis=1), np.sort(expected, axis=1))
    label = np.where(np.isnan(data.scores), np.nan, data.scores).astype(np.float64)
    found = averaged(label, near)
    for n in range(40):
        for k in range(3):
            answers = label[near[n], k]
            answers = answers[np.isfinite(answers)]
            assert found[n, k] == pytest.approx(
                answers.mean() if len(answers) else NAN, nan_ok=True
            )


def test_the_transformation_spreads_labels_most() -> None:
    # The weak model is always a little worse: without t every label is 0.
    data = outcomes(120, 2)
    gap = np.column_stack([np.zeros(120), -0.1 - 0.4 * (data.domains == "law")])
    plain = HybridChoice(labels="probabilistic")._label(data.embeddings, gap)[:, 1]
    moved = HybridChoice(labels="transformed")._label(data.embeddings, gap)[:, 1]
    assert not plain.any()
    assert mean_difference(moved) > 0.3
    assert moved[data.domains == "algebra"].mean() > moved[data.domains == "law"].mean() + 0.8


def test_right_or_wrong_leaves_nothing_to_transform() -> None:
    data = outcomes(100)
    estimates = [
        build_router(f"hybrid-llm:labels={labels}").fit(data).predict(
            queries(data, build_router("hybrid-llm"))
        )
        for labels in ("probabilistic", "transformed")
    ]  # fmt: skip
    np.testing.assert_allclose(*estimates, atol=1e-9)


def test_lines_are_least_squares_through_the_means() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random((4000, 2))
    gap = chance * [1.5, -1.0] - 0.5 + rng.normal(scale=0.1, size=(4000, 2))
    slope, offset = lines(chance, gap, gap.mean(axis=0))
    np.testing.assert_allclose(slope, [1.5, 0.0], atol=0.02)
    np.testing.assert_allclose((offset + slope * chance).mean(axis=0), gap.mean(axis=0))


@pytest.mark.parametrize("labels", ["deterministic", "probabilistic", "transformed"])
def test_it_finds_the_specialist(labels: str) -> None:
    data, unseen = outcomes(400, 3, num_domains=3), outcomes(200, 3, num_domains=3, seed=1)
    router = build_router(f"hybrid-llm:labels={labels}").fit(data)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    assert quality > unseen.scores.mean(axis=0).max() + 0.2


def test_the_best_model_is_the_fixed_point_the_others_are_held_against() -> None:
    data = outcomes(200)
    scores = data.scores.copy()
    scores[:, 1] = np.maximum(scores[:, 1], scores[:, 0])
    data = change(data, scores=scores)
    router = build_router("hybrid-llm").fit(data)
    estimate = router.predict(queries(data, router))
    best = int(data.mean_scores().argmax())
    assert np.ptp(estimate[:, best]) < 1e-2
    assert estimate[:, best].mean() == pytest.approx(data.mean_scores()[best], abs=1e-3)
    assert np.ptp(estimate[:, 2]) > 0.2


def test_on_noise_it_stays_near_the_means() -> None:
    data, unseen = outcomes(600, skill=0.5), outcomes(100, seed=1)
    router = build_router("hybrid-llm").fit(data)
    off = router.predict(queries(unseen, router)) - data.scores.mean(axis=0)
    assert np.sqrt(np.square(off).mean()) < 0.1


@pytest.mark.parametrize("labels", ["probabilistic", "transformed"])
def test_pure_noise_teaches_no_slope_and_the_best_single_model_stays(labels: str) -> None:
    # Were labels averaged over neighbours before the folds are made, they would hold the outcomes
    # of held-out prompts: slopes of 0.4 to 0.9 on each of these seeds.
    slopes = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(2500, 64)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        data = TrainingSet(
            models=("a", "b"),
            embeddings=x[:1500],
            scores=(rng.random((1500, 2)) < [0.7, 0.69]).astype(np.float32),
            costs=np.full((1500, 2), 1e-4),
        )
        router = HybridChoice(labels=labels).fit(data, seed=seed)
        slopes.append(router._slope.max())
        chosen = router.predict(Queries(embeddings=x[1500:])).argmax(axis=1)
        assert (chosen == data.mean_scores().argmax()).mean() > 0.95
    assert np.mean(slopes) < 0.1


@pytest.mark.parametrize("setting", ["samples=0", "penalty=0", "penalty=nan"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="router 'hybrid-llm': expected samples >= 1"):
        build_router(f"hybrid-llm:{setting}")


def test_unknown_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'transformed'"):
        build_router("hybrid-llm:labels=transform")
