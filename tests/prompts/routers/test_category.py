from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Queries, TrainingSet
from crossroads.prompts.routers import build_router
from tests.prompts.routers.tables import change, outcomes, queries

NAN = float("nan")


def separable(scores: list[list[float]], domains: list[str]) -> TrainingSet:
    """Orthogonal embeddings, one a domain."""
    names = sorted(set(domains))
    rows = np.eye(8, dtype=np.float32)[[names.index(d) for d in domains]]
    return change(
        outcomes(len(scores), len(scores[0])),
        embeddings=rows,
        scores=np.array(scores, dtype=np.float32),
        domains=np.array(domains, dtype=object),
        texts=None,
    )


# Means over all prompts: 2/5 (5 known) and 1/2 (4 known).
FIVE = separable([[1, 0], [1, NAN], [0, 1], [0, 0], [0, 1]], ["law", "law", "law", "art", "art"])
# Shrunk by 2: law (2 + 2 * 2/5) / (3 + 2), (1 + 2 * 1/2) / (2 + 2); art likewise.
LAW, ART = [2.8 / 5, 2 / 4], [0.8 / 4, 2 / 4]


def averages(data: TrainingSet, shrink: float = 10.0) -> dict[str, np.ndarray]:
    """The shrunk averages of each domain; for tables without missing cells."""
    mean = data.scores.mean(axis=0, dtype=np.float64)
    of_domain = {d: data.scores[data.domains == d] for d in set(data.domains)}
    return {d: (s.sum(axis=0) + shrink * mean) / (len(s) + shrink) for d, s in of_domain.items()}


def test_a_prompt_gets_the_shrunk_averages_of_its_category() -> None:
    router = build_router("category:shrink=2:weighting=hard").fit(FIVE)
    estimate = router.predict(queries(FIVE, router))
    np.testing.assert_allclose(estimate, [LAW, LAW, LAW, ART, ART], rtol=1e-6)


def test_without_shrinkage_they_are_the_plain_averages() -> None:
    router = build_router("category:shrink=0:weighting=hard").fit(FIVE)
    estimate = router.predict(queries(FIVE, router))[[0, 4]]
    np.testing.assert_allclose(estimate, [[2 / 3, 1 / 2], [0, 1 / 2]], atol=1e-6)


def test_a_model_never_run_in_a_category_stands_at_its_mean() -> None:
    data = separable([[1, NAN], [0, NAN], [0, 1], [0, 0]], ["law", "law", "art", "art"])
    router = build_router("category:shrink=0:weighting=hard").fit(data)
    np.testing.assert_allclose(router.predict(queries(data, router))[0], [0.5, 0.5], atol=1e-6)


def test_the_soft_estimate_mixes_the_categories_by_one_probability() -> None:
    data = outcomes(100, 3, spread=1.0)
    soft = build_router("category:weighting=soft").fit(data)
    of_domain = averages(data)
    step = of_domain["law"] - of_domain["algebra"]
    share = (soft.predict(queries(data, soft)) - of_domain["algebra"]) / step
    np.testing.assert_allclose(share, share[:, :1].repeat(3, axis=1), atol=1e-6)
    assert share.min() >= 0.0
    assert share.max() <= 1.0
    is_law = data.domains == "law"
    assert ((share[:, 0] > 0.5) == is_law).mean() > 0.95


def test_soft_and_hard_agree_where_the_category_is_plain() -> None:
    data = separable([[1, 0]] * 300 + [[0, 1]] * 300, ["law"] * 300 + ["art"] * 300)
    asked = Queries(embeddings=data.embeddings)
    soft, hard = (
        build_router(f"category:weighting={w}").fit(data).predict(asked) for w in ("soft", "hard")
    )
    np.testing.assert_allclose(soft, hard, atol=0.05)
    assert np.abs(soft - hard).max() > 0.0


def test_a_wrong_label_does_not_mislead_the_predicted_category() -> None:
    router = build_router("category:weighting=hard").fit(FIVE)
    asked = queries(FIVE, router)
    lied = Queries(embeddings=asked.embeddings, domains=asked.domains[::-1])
    np.testing.assert_array_equal(router.predict(lied), router.predict(asked))


@pytest.mark.parametrize("weighting", ["soft", "hard"])
def test_heavy_shrinkage_gives_the_means(weighting: str) -> None:
    router = build_router(f"category:shrink=1e9:weighting={weighting}").fit(FIVE)
    np.testing.assert_allclose(router.predict(queries(FIVE, router)), [[0.4, 0.5]] * 5, atol=1e-6)


@pytest.mark.parametrize("weighting", ["soft", "hard"])
def test_a_single_category_gives_the_means(weighting: str) -> None:
    data = change(FIVE, domains=np.array(["law"] * 5, dtype=object))
    router = build_router(f"category:weighting={weighting}").fit(data)
    np.testing.assert_allclose(router.predict(queries(data, router)), [[0.4, 0.5]] * 5, rtol=1e-6)


def test_words_tell_the_category_where_embeddings_do_not() -> None:
    data = outcomes(120, 2)
    data = change(data, embeddings=np.tile(data.embeddings[:1], (120, 1)))
    router = build_router("category:weighting=hard").fit(data)
    of_domain = averages(data)
    true = np.array([of_domain[domain] for domain in data.domains])
    agree = np.isclose(router.predict(queries(data, router)), true).all(axis=1)
    assert agree.mean() > 0.9


def test_the_label_of_a_prompt_is_no_way_to_its_category() -> None:
    with pytest.raises(UsageError, match=r"unknown weighting.*'given'.*hard, soft"):
        build_router("category:weighting=given")


@pytest.mark.parametrize("shrink", ["-1", "nan"])
def test_impossible_shrinkage_is_refused(shrink: str) -> None:
    with pytest.raises(UsageError, match="expected shrink >= 0"):
        build_router(f"category:shrink={shrink}")


@pytest.mark.parametrize("name", ["category", "auto", "boosting"])
def test_finer_labels_are_learnt_where_there_are_any(name: str) -> None:
    """Domains say nothing here; subjects tell which model is right."""
    data = outcomes(400, 3)
    rng = np.random.default_rng(0)
    subject = np.array([f"s{i}" for i in rng.integers(2, size=400)], dtype=object)
    rows = np.eye(8, dtype=np.float32)[(subject == "s1").astype(int)]
    rows += 0.3 * rng.standard_normal(rows.shape).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = np.stack([subject == "s0", subject == "s1", rng.random(400) < 0.2], axis=1)
    data = change(
        data,
        embeddings=rows,
        scores=scores.astype(np.float32),
        domains=np.array(["one", "two"] * 200, dtype=object),
        texts=None,
    )
    asked = Queries(embeddings=rows)
    with_subjects = build_router(name).fit(change(data, subjects=subject)).predict(asked)
    right = scores[np.arange(400), with_subjects.argmax(axis=1)].mean()
    assert right > 0.9
    if name == "category":  # all it has are labels
        blind = build_router(name).fit(data).predict(asked)
        assert scores[np.arange(400), blind.argmax(axis=1)].mean() < 0.7
