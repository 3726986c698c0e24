from __future__ import annotations

import numpy as np
import pytest

from crossroads.prompts.composition.neighbours import NeighbourVotes, nearest


def unit(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    rows = rng.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_nearest_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    query, key = unit(rng, (1500, 8)), unit(rng, (40, 8))
    index, similarity = nearest(query, key, 5)
    every = query.astype(np.float32) @ key.astype(np.float32).T
    expected = np.argsort(-every, axis=1, kind="stable")[:, :5]
    assert (index == expected).mean() > 0.999  # block products may differ in the last bit
    np.testing.assert_allclose(similarity, -np.sort(-every, axis=1)[:, :5], atol=1e-6)


def test_a_prompt_is_no_neighbour_of_its_own_group() -> None:
    rows = unit(np.random.default_rng(1), (30, 4))
    group = np.arange(30) % 3
    index, _ = nearest(rows, rows, 10, query_group=group, key_group=group)
    assert (group[index] != group[:, None]).all()


def test_what_is_no_neighbour_comes_last_at_minus_infinity() -> None:
    group = np.zeros(3, dtype=np.intp)
    _, similarity = nearest(np.eye(3), np.eye(3), 9, query_group=group, key_group=group)
    assert similarity.shape == (3, 3)
    assert np.isneginf(similarity).all()


def test_votes_are_shares_with_one_vote_for_the_prior() -> None:
    votes = NeighbourVotes(k=2).fit(np.eye(4), np.array([0, 0, 1, 1]), 2)
    np.testing.assert_allclose(
        votes.probabilities(np.array([[1.0, 0.9, 0, 0]])), [[2.5 / 3, 0.5 / 3]]
    )


def test_held_out_votes_come_from_other_folds() -> None:
    rows, code = np.repeat(np.eye(2), 6, axis=0), np.repeat([0, 1], 6)
    fold = np.repeat([0, 1], 6)  # each category is a fold: only the other one can vote
    held = NeighbourVotes(k=3).fit(rows, code, 2).held_out(fold)
    assert (held.argmax(axis=1) != code).all()
    np.testing.assert_allclose(held.sum(axis=1), 1.0)


def test_with_one_fold_the_prior_decides() -> None:
    votes = NeighbourVotes(k=3).fit(np.eye(4), np.array([0, 0, 0, 1]), 2)
    np.testing.assert_allclose(votes.held_out(np.zeros(4, dtype=np.intp)), [[0.75, 0.25]] * 4)


def test_a_restored_voter_votes_the_same() -> None:
    rng = np.random.default_rng(2)
    votes = NeighbourVotes(k=7).fit(unit(rng, (50, 4)), rng.integers(3, size=50), 3)
    query = unit(rng, (9, 4))
    again = NeighbourVotes.restore(votes.state())
    np.testing.assert_array_equal(again.probabilities(query), votes.probabilities(query))


@pytest.mark.parametrize("num_queries", [0, 1])
def test_any_number_of_queries_is_answered(num_queries: int) -> None:
    votes = NeighbourVotes().fit(np.eye(3), np.array([0, 1, 2]), 3)
    assert votes.probabilities(np.eye(3)[:num_queries]).shape == (num_queries, 3)
