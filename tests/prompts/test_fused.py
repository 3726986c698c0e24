"""The rearranged stack of ``auto`` says what its members' own designs say."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from crossroads.prompts.members import domains_design, linear_design
from crossroads.prompts.router import Queries, TrainingSet
from crossroads.prompts.routers.auto import MEMBERS, Auto
from crossroads.prompts.wording import NUM_BUCKETS, NUM_STYLES
from tests.prompts.routers.tables import change, outcomes

TEXTS = ("solve for x = 3", "who is liable?", "", "caf\u00e9 12 \u4f60\u597d", "Bake\tbread\n" * 9)
MODELS = ("small", "medium", "large", "huge")
DIM, AXES, LANDMARKS = 12, 5, 7
LABELS = {"domains": 3, "subjects": 6}


def member_by_member(router: Auto, asked: Queries) -> np.ndarray:
    """Return the sum that ``auto`` is defined by."""
    view = router._reader.read(asked)
    labels = {kind: known.probabilities(view) for kind, known in router._classifiers.items()}
    both = np.concatenate([np.zeros((len(view), 0)), *labels.values()], axis=1)
    designs = {kind: domains_design(view, label) for kind, label in labels.items()}
    if "landmarks" in router._weights:
        designs["landmarks"] = router._landmarks.design(view, both)
    designs["linear"] = linear_design(view, both)
    estimate = np.zeros((len(view), 1)) + router._intercept
    for name, weights in router._weights.items():
        if name != "words":
            estimate += designs[name] @ weights
        elif view.wording is not None:
            estimate += view.wording.sums(weights)
    return estimate


def table(**without: Any) -> TrainingSet:
    data = outcomes(120, 3, num_domains=4)
    subjects = np.array([f"{d} {n % 2}" for n, d in enumerate(data.domains)], dtype=object)
    return change(change(data, subjects=subjects), **without)


@pytest.mark.parametrize("texts", [True, False], ids=["asked by text", "by embedding"])
@pytest.mark.parametrize(
    "without",
    [{}, {"texts": None}, {"domains": None}, {"domains": None, "subjects": None}],
    ids=lambda names: "without " + (" ".join(names) or "nothing"),
)
def test_the_rearranged_sum_is_the_sum(without: dict[str, None], texts: bool) -> None:
    data = table(**without)
    router = Auto(landmarks=20).fit(data)
    words = np.array((TEXTS * 24)[: len(data)], dtype=object)
    asked = Queries(embeddings=data.embeddings, texts=words if texts else None)
    expected = member_by_member(router, asked)
    np.testing.assert_allclose(router.predict(asked), expected, atol=1e-12)
    for n in range(6):
        row = asked.take(slice(n, n + 1))
        np.testing.assert_allclose(router.predict(row)[0], expected[n], atol=1e-12)


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_may_stand_alone(member: str) -> None:
    data = table()
    router = Auto(members=(member,), landmarks=20).fit(data)
    asked = Queries(embeddings=data.embeddings, texts=data.texts)
    expected = member_by_member(router, asked)
    assert set(router._weights) == {member}
    assert expected.std(axis=0).max() > 1e-3  # it says something
    np.testing.assert_allclose(router.predict(asked), expected, atol=1e-12)


def test_what_is_fitted_again_is_rearranged_again() -> None:
    data, router = table(), Auto(landmarks=20)
    asked = Queries(embeddings=data.embeddings, texts=data.texts)
    first = router.fit(data).predict(asked)
    other = router.fit(change(data, scores=1 - data.scores)).predict(asked)
    assert np.abs(first - other).max() > 0.1
    np.testing.assert_allclose(other, member_by_member(router, asked), atol=1e-12)


def spread(*shape: int, step: int) -> np.ndarray:
    """Return numbers in [-0.5, 0.5) that are the same on every machine."""
    numbers = np.arange(int(np.prod(shape))) * step % 1013
    return (numbers / 1013 - 0.5).reshape(shape)


def fixed_router() -> Auto:
    """An ``auto`` of every member, made of fixed numbers in place of a fit."""
    both = sum(LABELS.values())
    arrays = {
        "intercept": spread(len(MODELS), step=101),
        "landmark_centres": spread(LANDMARKS, both + NUM_STYLES + AXES, step=211),
        "landmark_sharpness": np.array(0.3),
        "weights_landmarks": spread(LANDMARKS, len(MODELS), step=307),
        "weights_linear": spread(DIM + NUM_STYLES + both, len(MODELS), step=401),
        "weights_words": 8 * spread(NUM_BUCKETS, len(MODELS), step=503),
        "reader_mean": spread(DIM, step=601),
        "reader_axes": spread(DIM, AXES, step=701),
        "reader_style": np.abs(spread(2, NUM_STYLES, step=809)),
    }
    for kind, count in LABELS.items():
        design = DIM + NUM_STYLES + count
        arrays[f"weights_{kind}"] = spread(count * (1 + AXES), len(MODELS), step=count + 11)
        arrays[f"{kind}_domain_weights"] = 4 * spread(design + 1, count, step=count + 37)
        arrays[f"{kind}_domain_odds"] = spread(NUM_BUCKETS, count, step=53).astype(np.float32)
        arrays[f"{kind}_domain_odds_scale"] = np.array(1.5)
    return Auto.restore(models=MODELS, settings={}, arrays=arrays)


def test_two_hundred_prompts_get_the_estimates_they_always_got() -> None:
    """To the six digits that the gateway keeps, alone and in batches."""
    texts = [f"{TEXTS[n % 5]} number {n * n} of {'Many ' * (n % 7)}words." for n in range(200)]
    embeddings = spread(200, DIM, step=17).astype(np.float32)
    asked = Queries(embeddings=embeddings, texts=np.array(texts, dtype=object))
    router = fixed_router()
    alone = [router.predict(asked.take(slice(n, n + 1))) for n in range(200)]
    for found in (np.concatenate(alone), router.predict(asked)):
        digest = hashlib.sha256((found.round(6) + 0.0).tobytes()).hexdigest()
        assert digest[:16] == "db0b8431109f3f1d"


def test_kept_arrays_carry_nothing_from_one_batch_to_the_next() -> None:
    router, texts = fixed_router(), np.array([*TEXTS, TEXTS[0] * 9], dtype=object)
    embeddings = spread(6, DIM, step=19).astype(np.float32)
    by_text = Queries(embeddings=embeddings, texts=texts)
    by_embedding = Queries(embeddings=embeddings)
    first = [router.predict(asked) for asked in (by_text, by_embedding)]
    kept = first[0].copy()
    for _ in range(3):
        for asked, expected in zip((by_text, by_embedding), first, strict=True):
            np.testing.assert_array_equal(router.predict(asked), expected)
    np.testing.assert_array_equal(first[0], kept)  # what was returned is the caller's


def test_threads_share_one_router() -> None:
    router = fixed_router()
    embeddings = spread(64, DIM, step=23).astype(np.float32)
    rows = [Queries(embeddings=embeddings[n : n + 2]) for n in range(0, 64, 2)]
    expected = [router.predict(row) for row in rows]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(router.predict, rows * 10))
    for n, estimate in enumerate(found):
        np.testing.assert_array_equal(estimate, expected[n % len(rows)])


def test_of_many_prompts_no_arrays_are_kept() -> None:
    router = fixed_router()
    for count in (1, 16, 17, 64):
        router.predict(Queries(embeddings=spread(count, DIM, step=29).astype(np.float32)))
    assert router._fused is not None
    assert sorted(router._fused._spaces) == [1, 16]
