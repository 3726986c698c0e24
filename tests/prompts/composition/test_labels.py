from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.composition import category_codes, expand_labels
from crossroads.prompts.composition.labels import REST
from crossroads.prompts.domain_classifier import MOST_DOMAINS

METHODS = pytest.mark.parametrize("method", ["spread", "pseudo"])


def clusters(
    num_prompts: int, num_clusters: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    cluster = np.arange(num_prompts) % num_clusters
    rows = np.eye(8)[cluster] + rng.normal(scale=0.1, size=(num_prompts, 8))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), cluster


def few(cluster: np.ndarray, count: int = 5) -> np.ndarray:
    """The first ``count`` labels of each cluster."""
    num_clusters = int(cluster.max()) + 1
    return np.where(np.arange(len(cluster)) < count * num_clusters, cluster, -1)


@METHODS
def test_a_few_labels_reach_the_whole_of_their_cluster(method: str) -> None:
    rows, cluster = clusters(300)
    grown = expand_labels(rows, few(cluster, 20), 3, method=method, share=1.0)
    labelled = grown.code >= 0
    assert grown.coverage > 0.9
    assert (grown.code[labelled] == cluster[labelled]).mean() > 0.98


@METHODS
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), share=st.floats(0.1, 1.0))
def test_given_labels_are_kept_and_certain(method: str, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rows, cluster = clusters(60, seed=seed)
    code = np.where(rng.random(60) < share, cluster, -1)
    code[0] = cluster[0]
    grown = expand_labels(rows, code, 3, method=method)
    given_N = code >= 0
    assert (grown.code[given_N] == code[given_N]).all()
    assert (grown.confidence[given_N] == 1.0).all()
    assert ((grown.confidence >= 0) & (grown.confidence <= 1 + 1e-9)).all()


@METHODS
def test_each_category_adopts_its_most_confident_and_no_more_than_its_share(method: str) -> None:
    rows, cluster = clusters(150)
    code = few(cluster)
    grown = expand_labels(rows, code, 3, method=method, share=0.3)
    new = (grown.code >= 0) & (code < 0)
    assert np.bincount(grown.code[new], minlength=3).tolist() == [15, 15, 15]
    for category in range(3):
        mine = np.flatnonzero((code < 0) & (cluster == category))
        left = np.setdiff1d(mine, np.flatnonzero(new))
        adopted = np.intersect1d(mine, np.flatnonzero(grown.code == category))
        assert grown.confidence[adopted].min() >= grown.confidence[left].max() - 1e-9
    assert (expand_labels(rows, code, 3, method=method, share=0.0).code == code).all()


def test_a_prompt_nothing_leads_to_stays_unlabelled() -> None:
    rows, cluster = clusters(30)
    far = np.concatenate([rows, np.zeros((1, 8))])
    grown = expand_labels(far, np.append(few(cluster), -1), 3, method="spread")
    assert grown.code[-1] == -1
    assert grown.confidence[-1] == 0.0


def test_what_cannot_be_expanded_is_refused() -> None:
    rows, cluster = clusters(12)
    with pytest.raises(UsageError, match="unknown label expansion 'spred'; did you mean 'spread'"):
        expand_labels(rows, cluster, 3, method="spred")
    with pytest.raises(UsageError, match=r"share in \[0, 1\], got 2"):
        expand_labels(rows, cluster, 3, share=2)
    with pytest.raises(InputError, match="no prompt is labelled"):
        expand_labels(rows, np.full(12, -1), 3)


def test_codes_count_from_the_most_frequent_and_blanks_have_none() -> None:
    domains = np.array(["law", "art", "law", None, " ", ""], dtype=object)
    code, names = category_codes(domains)
    assert names == ("law", "art")
    assert code.tolist() == [0, 1, 0, -1, -1, -1]


def test_beyond_the_most_categories_the_rarest_are_one() -> None:
    domains = np.array(["a", "a", *(f"b{n:03}" for n in range(100))], dtype=object)
    code, names = category_codes(domains)
    assert len(names) == MOST_DOMAINS == code.max() + 1
    assert names[0] == "a"
    assert names[-1] == REST


def test_a_table_without_any_category_is_refused() -> None:
    with pytest.raises(InputError, match="'domain' column"):
        category_codes(np.array([None, ""], dtype=object))
