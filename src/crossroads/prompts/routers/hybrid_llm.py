"""How likely is it that another model does as well as the best one?

Hybrid LLM (2024, arXiv 2404.14618) predicts from the prompt whether the weak model's answer is at
most t worse than the strong one's, H(x) = q(weak) - q(strong), by logistic regression on labels

    deterministic  y = 1[H >= 0]              one answer each
    probabilistic  y = P[H >= 0]              over several answers
    transformed    y = P[H >= -t*],           t* = argmax_t mean over i, j of |y_i(t) - y_j(t)|

and sends a prompt to the weak model where the prediction passes a threshold. Differences: with K
models each is held against the one of the highest mean score, K - 1 pairs in all. An outcome table
holds one answer a cell, so the several answers are those to the ``samples`` nearest training
prompts, each its own nearest; with scores of 0 and 1 no t below 1 changes a label, so that
``transformed`` equals ``probabilistic``. The prediction is told as quality, the mean of the best
plus a line in p fitted out of fold, never falling in p: any threshold on p is a point of the
``tradeoff`` rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.regression import logistic_regressions, sigmoid
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import grouped_folds

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

LABELS = ("deterministic", "probabilistic", "transformed")
_FOLDS = 3
_BLOCK = 512  # prompts at a time: bounds the similarities held in memory
_GAPS = np.linspace(0.0, 0.95, 20)  # candidates for t


@dataclass(kw_only=True)
class HybridChoice(PromptRouter):
    """Quality of k = mean of the best + offset_k + slope_k P(k is no worse than the best).

    Parameters
    ----------
    labels : ``deterministic``, ``probabilistic`` or ``transformed``
    samples : nearest training prompts that stand for several answers, >= 1
    penalty : of the logistic regressions, > 0
    """

    name = "hybrid-llm"
    summary = "chance that a model is no worse than the best single one"
    axis = "size"

    labels: str = "transformed"
    samples: int = 10
    penalty: float = 10.0

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise unknown_name("labels of router 'hybrid-llm':", self.labels, LABELS)
        if self.samples < 1 or not 0 < self.penalty < np.inf:
            raise UsageError(
                f"router 'hybrid-llm': expected samples >= 1 and penalty > 0, got {self.settings!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        mean_K = data.mean_scores()
        best = int(mean_K.argmax())
        gap_NK = data.scores.astype(np.float64) - data.scores[:, best : best + 1]
        fold_N = grouped_folds(data.embeddings, _FOLDS, rng)
        held_out_NK = np.full(gap_NK.shape, np.nan)
        for fold in np.unique(fold_N):
            rest, rows = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
            if len(rest):
                learned = self._learn(data.embeddings[rest], gap_NK[rest])
                held_out_NK[rows] = self._chances(data.embeddings[rows], *learned)
        self._slope, self._offset = lines(held_out_NK, gap_NK, mean_K - mean_K[best])
        self._offset += mean_K[best]
        self._weights, self._bias = self._learn(data.embeddings, gap_NK)

    def _label(self, x_ND: Float, gap_NK: Float64) -> Float64:
        """Return the labels, shape (N, K), NaN where a pair was not run."""
        if self.labels == "deterministic":
            return at_least(gap_NK, 0.0)
        near_NS = nearest(x_ND, self.samples)
        if self.labels == "probabilistic":
            return averaged(at_least(gap_NK, 0.0), near_NS)
        labels = [averaged(at_least(gap_NK, t), near_NS) for t in _GAPS]
        spread = np.array([[mean_difference(y) for y in label.T] for label in labels])
        chosen_K = spread.argmax(axis=0)
        return np.stack([labels[t][:, k] for k, t in enumerate(chosen_K)], axis=1)

    def _learn(self, x_ND: Float, gap_NK: Float64) -> tuple[Float64, Float64]:
        """Return weights and bias by labels of these rows alone: none averages over other rows."""
        y_NK = self._label(x_ND, gap_NK)
        weights = logistic_regressions(x_ND, y_NK, penalty=self.penalty)
        return weights[:-1], weights[-1]

    def _chances(self, x_ND: Float, weights: Float64, bias: Float64) -> Float64:
        return sigmoid(x_ND.astype(np.float64) @ weights + bias)

    def _predict(self, queries: Queries) -> Float64:
        chance_NK = self._chances(queries.embeddings, self._weights, self._bias)
        return self._offset + self._slope * chance_NK

    def _state(self) -> Arrays:
        return {
            "weights": self._weights,
            "bias": self._bias,
            "slope": self._slope,
            "offset": self._offset,
        }

    def _restore(self, arrays: Arrays) -> None:
        self._weights, self._bias = arrays["weights"], arrays["bias"]
        self._slope, self._offset = arrays["slope"], arrays["offset"]


def at_least(gap_NK: Float64, t: float) -> Float64:
    """Return 1 where the gap is no worse than -t, else 0, NaN where it is unknown."""
    return np.where(np.isnan(gap_NK), np.nan, (gap_NK >= -t - 1e-9).astype(np.float64))


def nearest(x_ND: Float, count: int) -> Ints:
    """Return the most similar rows of each row, itself among them, shape (N, min(count, N))."""
    kept = min(count, len(x_ND))
    found = []
    for begin in range(0, len(x_ND), _BLOCK):
        similarity = x_ND[begin : begin + _BLOCK] @ x_ND.T
        rows = np.arange(len(similarity))
        similarity[rows, begin + rows] = np.inf
        found.append(np.argpartition(similarity, len(x_ND) - kept, axis=1)[:, -kept:])
    return np.concatenate(found)


def averaged(label_NK: Float64, near_NS: Ints) -> Float64:
    """Return the mean label over the known among these rows; NaN where there is none."""
    known = np.isfinite(label_NK)
    filled = np.where(known, label_NK, 0.0)
    total, count = np.zeros(label_NK.shape), np.zeros(label_NK.shape)
    for column in near_NS.T:
        total += filled[column]
        count += known[column]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def mean_difference(label_N: Float64) -> float:
    """Return the mean of |y_i - y_j| over all pairs of known labels, by one sort."""
    y = np.sort(label_N[np.isfinite(label_N)])
    rank = 2 * np.arange(len(y)) - len(y) + 1
    return float(2.0 * (rank * y).sum() / max(len(y), 1) ** 2)


def lines(chance_NK: Float64, gap_NK: Float64, mean_gap_K: Float64) -> tuple[Float64, Float64]:
    """Return (slope, offset), (K,): least squares of the gap on the chance, slopes >= 0.

    A ridge of one prompt's spread keeps the slope down where the chance hardly varies. Lines pass
    through the mean chance and the mean gap, so that a slope of 0 leaves the mean scores.
    """
    known = np.isfinite(gap_NK) & np.isfinite(chance_NK)
    count_K = np.maximum(known.sum(axis=0), 1)
    p = np.where(known, chance_NK, 0.0)
    middle_K = p.sum(axis=0) / count_K
    away = np.where(known, chance_NK - middle_K, 0.0)
    gap = np.where(known, gap_NK, 0.0)
    variance_K = np.square(away).sum(axis=0)
    slope_K = np.maximum((away * gap).sum(axis=0) / (variance_K + 1.0), 0.0)
    return slope_K, np.asarray(mean_gap_K - slope_K * middle_K)
