from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.composition import best_experts, neighbour_agreement


def two_clusters(num_prompts: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    cluster = np.arange(num_prompts) % 2
    rows = np.eye(8)[cluster] + rng.normal(scale=0.1, size=(num_prompts, 8))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), cluster


def test_labels_of_the_neighbourhood_agree_and_labels_dealt_at_random_do_not() -> None:
    rows, cluster = two_clusters()
    assert neighbour_agreement(rows, cluster).kappa == pytest.approx(1.0)
    dealt = np.random.default_rng(1).permutation(cluster)
    assert abs(neighbour_agreement(rows, dealt).kappa) < 0.1


def test_chance_is_the_share_of_equal_pairs() -> None:
    rows, _ = two_clusters(4)
    found = neighbour_agreement(rows, np.array(["a", "a", "a", "b"]), k=1)
    assert found.chance == pytest.approx(6 / 12)


def test_one_label_for_all_has_no_agreement_beyond_chance() -> None:
    rows, _ = two_clusters(10)
    found = neighbour_agreement(rows, np.zeros(10), k=3)
    assert (found.observed, found.chance, found.kappa) == (1.0, 1.0, 0.0)


def test_the_best_expert_is_the_highest_score_that_was_run() -> None:
    assert best_experts(np.array([[0.2, 0.9, np.nan], [0.3, 0.1, 0.2]])).tolist() == [1, 0]


def test_ties_go_to_the_expert_best_overall_or_are_drawn() -> None:
    score = np.tile([1.0, 1.0, 0.0], (200, 1))
    score[0] = [0.0, 1.0, 0.0]
    assert set(best_experts(score)) == {1}
    drawn = best_experts(score, np.random.default_rng(0))
    assert set(drawn) == {0, 1}
    assert 60 < (drawn == 0).sum() < 140


@pytest.mark.parametrize("k", [0, 10])
def test_impossible_neighbourhoods_are_refused(k: int) -> None:
    rows, cluster = two_clusters(10)
    with pytest.raises(InputError, match=r"1 <= k < N"):
        neighbour_agreement(rows, cluster, k=k)
