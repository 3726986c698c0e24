"""Two verifiers that need no model of their own: agreement between answers, and their length.

Two models that give the same answer are more often right than either alone: self-consistency, with
different models in place of repeated samples. The answers are paid for on the way anyhow.

A language model that is lost rambles, repeats itself or stops at once, so the length of an answer,
against the model's usual one, says something about whether it is right. It is known only after the
answer was made: a genuine post-generation signal, and recorded in most outcome tables. This use is
the project's own; stronger verifiers plug in as any array of acceptance scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.prompts.regression import logistic_regressions, sigmoid

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]

_EDGE = 0.01  # estimates are clipped this far from 0 and 1 before taking log odds
_FAR = 4.0  # standard deviations: lengths unheard of are not extrapolated further


def agreement(answers_NK: npt.NDArray[Any], order: Sequence[int]) -> Float64:
    """Return, for each model in a cascade, the share of the answers before its own that equal it.

    Returns acceptance of shape (N, K), 0 for models that are not in the cascade.

    Parameters
    ----------
    answers_NK : answers in a form that can be compared (a letter, a number); None and the empty
        text agree with nothing
    order : columns in the order asked; the first one has nothing to agree with
    """
    acceptance = np.zeros(answers_NK.shape)
    is_answer = np.array([[a is not None and a != "" for a in row] for row in answers_NK.tolist()])
    for stage, column in enumerate(order):
        earlier = list(order[:stage])
        if earlier:
            same = np.asarray(answers_NK[:, earlier] == answers_NK[:, [column]], dtype=bool)
            acceptance[:, column] = (same & is_answer[:, [column]]).mean(axis=1)
    return acceptance


class LengthVerifier:
    """Probability that an answer is right, from a router's estimate and the answer's length.

    One logistic regression a model on (log odds of the estimate, z, z^2), z = standardised log of
    the answer's tokens.

    Parameters
    ----------
    penalty : of half the squared weights, > 0
    """

    def __init__(self, *, penalty: float = 1.0) -> None:
        if not 0 < penalty < np.inf:
            raise InputError(f"length verifier: expected penalty > 0, got {penalty!r}")
        self._penalty = penalty

    def fit(self, estimate_NK: Float, tokens_NK: Float, score_NK: Float) -> Self:
        """Learn from prompts the router did not learn from; all three (N, K), NaN = not run."""
        log_tokens = _log_tokens(estimate_NK, tokens_NK)
        if np.shape(score_NK) != log_tokens.shape:
            raise InputError(
                f"length verifier: scores of shape {np.shape(score_NK)} for {log_tokens.shape}"
            )
        known = np.isfinite(log_tokens) & np.isfinite(score_NK)
        if not known.any(axis=0).all():
            raise InputError("length verifier: a model has no answer of known length and score")
        self._mean = np.nanmean(np.where(known, log_tokens, np.nan), axis=0)
        spread = np.nanstd(np.where(known, log_tokens, np.nan), axis=0)
        self._scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1.0), 0.0)
        target = np.where(known, score_NK, np.nan)
        self._weights = [
            logistic_regressions(design[rows], target[rows, k][:, None], penalty=self._penalty)
            for k, design in enumerate(self._designs(estimate_NK, log_tokens))
            for rows in (known[:, k],)
        ]
        return self

    def accept(self, estimate_NK: Float, tokens_NK: Float) -> Float64:
        """Return the probability that each answer is right, (N, K); unknown lengths are usual."""
        designs = self._designs(estimate_NK, _log_tokens(estimate_NK, tokens_NK))
        logits = [
            design @ weights[:-1, 0] + weights[-1, 0]
            for design, weights in zip(designs, self._weights, strict=True)
        ]
        return sigmoid(np.column_stack(logits))

    def _designs(self, estimate_NK: Float, log_tokens_NK: Float64) -> list[Float64]:
        share = np.clip(np.asarray(estimate_NK, dtype=np.float64), _EDGE, 1 - _EDGE)
        odds = np.log(share / (1 - share))
        z = np.clip((log_tokens_NK - self._mean) * self._scale, -_FAR, _FAR)
        z = np.where(np.isnan(z), 0.0, z)
        return [np.column_stack([odds[:, k], z[:, k], z[:, k] ** 2]) for k in range(z.shape[1])]


def _log_tokens(estimate_NK: Float, tokens_NK: Float) -> Float64:
    tokens = np.asarray(tokens_NK, dtype=np.float64)
    if tokens.ndim != 2 or tokens.shape != np.shape(estimate_NK):
        raise InputError(
            f"length verifier: tokens of shape {tokens.shape} for estimates of "
            f"{np.shape(estimate_NK)}"
        )
    return np.log1p(tokens)
