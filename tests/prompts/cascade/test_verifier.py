"""The length of an answer as a sign of whether it is right."""

from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.cascade import LengthVerifier, agreement, cascade_frontier


def answers(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates, tokens and scores of two models; right answers of the first are short."""
    rng = np.random.default_rng(seed)
    score = (rng.random((n, 2)) < 0.5).astype(float)
    tokens = np.exp(rng.normal(4.0, 0.3, (n, 2)))
    tokens[:, 0] *= np.where(score[:, 0] == 1, 1.0, 3.0)
    return np.full((n, 2), 0.5), tokens, score


def separation(accept: np.ndarray, score: np.ndarray) -> list[float]:
    """Mean acceptance of right answers less that of wrong ones, a model."""
    right, wrong = (np.where(score == v, accept, np.nan) for v in (1, 0))
    return [float(x) for x in np.nanmean(right, axis=0) - np.nanmean(wrong, axis=0)]


def test_a_length_that_tells_is_used_and_one_that_does_not_is_not() -> None:
    estimate, tokens, score = answers()
    verifier = LengthVerifier().fit(estimate, tokens, score)
    estimate, tokens, score = answers(seed=1)
    tells, silent = separation(verifier.accept(estimate, tokens), score)
    assert tells > 0.5
    assert abs(silent) < 0.05


def test_acceptance_is_a_probability_of_the_right_mean() -> None:
    estimate, tokens, score = answers()
    accept = LengthVerifier().fit(estimate, tokens, score).accept(estimate, tokens)
    assert ((accept > 0) & (accept < 1)).all()
    assert accept.mean(axis=0) == pytest.approx(score.mean(axis=0), abs=0.01)


def test_an_unknown_length_counts_as_the_usual_one() -> None:
    estimate, tokens, score = answers()
    tokens[:50] = np.nan
    verifier = LengthVerifier().fit(estimate, tokens, score)
    typical = np.exp(np.nanmean(np.log1p(tokens), axis=0)) - 1
    unknown = verifier.accept(estimate[:1], np.full((1, 2), np.nan))
    assert unknown == pytest.approx(verifier.accept(estimate[:1], typical[None]), rel=1e-6)


def test_answers_that_are_all_of_one_length_leave_the_estimate() -> None:
    rng = np.random.default_rng(0)
    estimate = rng.uniform(0.1, 0.9, (500, 1))
    score = (rng.random((500, 1)) < estimate).astype(float)
    accept = (
        LengthVerifier()
        .fit(estimate, np.full((500, 1), 7.0), score)
        .accept(estimate, np.full((500, 1), 900.0))
    )
    assert (np.diff(accept[np.argsort(estimate[:, 0]), 0]) > 0).all()


@pytest.mark.parametrize(
    ("tokens", "score", "problem"),
    [
        (np.ones((3, 1)), np.ones((3, 2)), "tokens of shape"),
        (np.ones((3, 2)), np.ones((3, 1)), "scores of shape"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "no answer of known length"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(
    tokens: np.ndarray, score: np.ndarray, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        LengthVerifier().fit(np.full((3, 2), 0.5), tokens, score)


def test_agreement_is_the_share_of_earlier_answers_that_are_the_same() -> None:
    answers = np.array([["A", "A", "A", "B"], ["A", "B", "A", "C"], ["", "", None, None]], object)
    accept = agreement(answers, (1, 0, 2))
    assert accept.tolist() == [[1, 0, 1, 0], [0, 0, 0.5, 0], [0, 0, 0, 0]]


def test_models_that_agree_only_where_they_are_right_make_a_perfect_verifier() -> None:
    truth = np.arange(60) % 4
    first = np.where(np.arange(60) % 2, truth, truth + 10)
    second = np.where(np.arange(60) % 2, truth, truth + 20)
    answers = np.column_stack([first, second, truth])
    score, cost = (answers == truth[:, None]).astype(float), np.tile([1.0, 2.0, 9.0], (60, 1))
    orders = [(0,), (2,), (0, 1, 2)]
    frontier = cascade_frontier(score, cost, lambda o: agreement(answers, o), orders=orders)
    best = frontier[-1]
    assert best.quality == 1.0
    assert best.cost == pytest.approx(1 + 2 + 9 / 2)
    assert best.cascade.order == (0, 1, 2)


def test_a_penalty_is_positive() -> None:
    with pytest.raises(InputError, match="penalty > 0"):
        LengthVerifier(penalty=0.0)
