from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.decide import Argmax
from crossroads.prompts.router import TrainingSet
from crossroads.prompts.routers import build_router
from crossroads.prompts.routers.auto import MEMBERS
from tests.prompts.routers.tables import argmax_quality, change, crossed, outcomes, queries


def noise(seed: int, num_prompts: int = 400) -> TrainingSet:
    """Levels differ; which prompts a model gets right has nothing to do with the prompt."""
    rng = np.random.default_rng(seed)
    level = np.array([0.5, 0.55, 0.6])
    scores = (rng.random((num_prompts, 3)) < level).astype(np.float32)
    return change(outcomes(num_prompts, seed=seed), scores=scores)


def means(data: TrainingSet, num_rows: int) -> np.ndarray:
    return np.tile(np.nanmean(data.scores.astype(np.float64), axis=0), (num_rows, 1))


def planted_quality(spec: str, data: TrainingSet, unseen: TrainingSet) -> float:
    """Share of what hindsight reaches."""
    router = build_router(spec).fit(data)
    quality = argmax_quality(router.predict(queries(unseen, router)), unseen)
    return quality / float(unseen.scores.max(axis=1).mean())


@pytest.mark.slow
def test_on_noise_it_is_the_best_single_model() -> None:
    # Leaving needs a lead of one standard error only, so a single table may well be misread.
    agree = []
    for seed in range(8):
        data, unseen = noise(seed), outcomes(300, seed=seed + 50)
        router, single = (build_router(name).fit(data) for name in ("auto", "best-single"))
        chosen = [
            Argmax().choose(r.predict(queries(unseen, r)), unseen.costs) for r in (router, single)
        ]
        agree.append(float((chosen[0] == chosen[1]).mean()))
    assert np.mean(agree) >= 0.95


def test_on_noise_estimates_stay_near_the_means() -> None:
    data, unseen = noise(0), outcomes(300, seed=50)
    router = build_router("auto").fit(data)
    off = router.predict(queries(unseen, router)) - means(data, 300)
    others = np.delete(off, int(data.scores.mean(axis=0).argmax()), axis=1)  # it has the bonus
    assert np.abs(others).max() < 0.15


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_it_finds_two_domains_and_their_specialists(seed: int, missing: float) -> None:
    data = outcomes(200, 2, missing=missing, seed=seed, skill=0.95)
    unseen = outcomes(300, 2, seed=seed + 50, skill=0.95)
    assert planted_quality("auto", data, unseen) >= 0.9
    assert planted_quality("best-single", data, unseen) < 0.65


def test_it_finds_them_without_domains_or_texts() -> None:
    data, unseen = outcomes(200, 2, skill=0.95), outcomes(300, 2, seed=50, skill=0.95)
    bare = change(data, domains=None, texts=None)
    assert planted_quality("auto", bare, change(unseen, domains=None, texts=None)) >= 0.9


def test_it_finds_them_by_words_alone() -> None:
    data, unseen = (
        change(d, embeddings=np.tile(d.embeddings[:1], (len(d), 1)), domains=None)
        for d in (outcomes(200, 2, skill=0.95), outcomes(300, 2, seed=50, skill=0.95))
    )
    rng = np.random.default_rng(0)  # no two prompts are copies
    data = change(
        data, embeddings=data.embeddings + rng.normal(scale=1e-3, size=(200, 16)).astype(np.float32)
    )
    assert planted_quality("auto:members=words", data, unseen) >= 0.9


def test_landmarks_find_what_no_linear_member_can() -> None:
    data, unseen = crossed(), crossed(seed=1)
    assert planted_quality("auto:members=landmarks", data, unseen) > 0.9
    assert planted_quality("auto", data, unseen) > 0.9
    assert planted_quality("auto:members=linear", data, unseen) < 0.65


def test_without_members_it_is_the_best_single_model_and_estimates_the_means() -> None:
    data = outcomes(missing=0.3)
    router = build_router("auto:members=").fit(data)
    np.testing.assert_allclose(router.predict(queries(data, router)), means(data, 80), atol=1e-9)


def test_any_choice_of_members_works() -> None:
    data = outcomes(60)
    for number in range(1, len(MEMBERS) + 1):
        for members in combinations(MEMBERS, number):
            router = build_router(f"auto:members={'+'.join(members)}").fit(data)
            assert np.isfinite(router.predict(queries(data, router))).all()


def test_too_few_prompts_or_one_model_give_the_means() -> None:
    copies = outcomes(100).take(np.repeat(np.arange(10), 10))
    for data in (outcomes(15), outcomes(100, 1), copies):
        router = build_router("auto").fit(data)
        expected = means(data, len(data))
        np.testing.assert_allclose(router.predict(queries(data, router)), expected, atol=1e-9)


def test_copies_of_prompts_do_not_pass_for_evidence() -> None:
    """Noise that repeats looks learnable where copies stand in training and held-out part."""
    distinct = noise(1, 60)
    data = distinct.take(np.tile(np.arange(60), 6))
    router = build_router("auto").fit(data)
    unseen = outcomes(300, seed=50)
    chosen = Argmax().choose(router.predict(queries(unseen, router)), unseen.costs)
    assert (chosen == data.scores.mean(axis=0).argmax()).mean() >= 0.95


def test_adding_a_constant_to_all_scores_adds_it_to_the_estimates() -> None:
    data = outcomes(100)
    low, high = (
        change(data, scores=data.scores * np.float32(0.5) + np.float32(shift))
        for shift in (0.0, 0.5)
    )
    estimates = []
    for shifted in (low, high):
        router = build_router("auto").fit(shifted)
        estimates.append(router.predict(queries(data, router)))
    np.testing.assert_allclose(estimates[1] - estimates[0], 0.5, atol=1e-4)


def test_an_unknown_member_is_refused() -> None:
    with pytest.raises(UsageError, match="member of router 'auto': 'landmark'; did you mean"):
        build_router("auto:members=linear+landmark")


@pytest.mark.parametrize("setting", ["landmarks=0", "folds=1", "folds=-2"])
def test_impossible_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=r"expected landmarks >= 1 and folds >= 2"):
        build_router(f"auto:{setting}")
