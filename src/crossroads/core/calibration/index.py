"""The earlier, index-conditional calibration of "Universal Verification" (arXiv 2502.20167).

Every class output of the activation is first turned into its rank among calibration points of
that class, v_c; the region of similarity is then ``q~ = v_predicted ln(2 + q)``. A small matrix
W over the ranks gives the probabilities ``softmax(ln(2 + q~) W v)``. Over J restarts the spread of
the thresholds and of the probabilities (median absolute deviation, taken as a Cauchy scale) is
held against the point.

Departure: W is fitted by L-BFGS, since its loss is convex, with a slight pull towards the
identity that keeps separable data finite; the paper steps through single points with Adam.

Axes: N rows, C classes, J restarts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.calibration.activation import sdm, sdm_loss
from crossroads.core.calibration.estimator import SdmEstimator
from crossroads.core.calibration.region import Region, dkw, find_region

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_PULL = 1e-3  # of W towards the identity, as a share of the mean loss


@dataclass(frozen=True, kw_only=True)
class RankCalibration:
    """Ranks, weights and thresholds of one restart.

    Attributes
    ----------
    estimator : the restart
    ranked : C ascending arrays, the class's own probability over its calibration points
    weight : float64 (C, C), W
    region : over ``q~`` and the rank probabilities
    similarity_by_class : C ascending arrays of ``q~`` over calibration points
    bins : (predicted class, floor of q~) -> median probability of the predicted class
    """

    estimator: SdmEstimator
    ranked: tuple[Float64, ...]
    weight: Float64
    region: Region
    similarity_by_class: tuple[Float64, ...] = ()
    bins: dict[tuple[int, int], float] = field(default_factory=dict)

    @classmethod
    def fit(cls, estimator: SdmEstimator) -> Self:
        """Calibrate on the estimator's own calibration half, at its level."""
        held = estimator.calibration
        classes = range(estimator.num_classes)
        ranked = tuple(np.sort(held.probability[held.label == c, c]) for c in classes)
        v_NC = rank(ranked, held.probability)
        predicted = held.logit.argmax(axis=1)
        similarity = _similarity(v_NC, predicted, held.similarity)
        weight = fit_weight(v_NC, held.label, similarity)
        similarity, probability = _output(weight, v_NC, predicted, similarity)
        chosen = probability[np.arange(len(predicted)), predicted]
        keys = [(int(c), int(q)) for c, q in zip(predicted, similarity, strict=True)]
        return cls(
            estimator=estimator,
            ranked=ranked,
            weight=weight,
            region=find_region(similarity, probability, held.label, estimator.region.level),
            similarity_by_class=tuple(np.sort(similarity[held.label == c]) for c in classes),
            bins={
                key: float(np.median(chosen[[k == key for k in keys]])) for key in sorted(set(keys))
            },
        )

    def lower(self, x_ND: Float) -> tuple[Ints, Float64, Float64]:
        """Return prediction, ``q~`` and its probability at the lower end of the bands, each (N,).

        Ranks of the predicted class are lowered, those of the others raised, by the inequality of
        Dvoretzky, Kiefer and Wolfowitz over the calibration points of that class below ``q~``.
        """
        found = self.estimator.estimate(x_ND)
        v_NC = rank(self.ranked, found.probability)
        rows, predicted = np.arange(len(v_NC)), found.prediction
        similarity = _similarity(v_NC, predicted, found.similarity)
        similarity, _ = _output(self.weight, v_NC, predicted, similarity)
        counts = [np.searchsorted(s, similarity, side="left") for s in self.similarity_by_class]
        eps_NC = dkw(np.stack(counts, axis=1), self.region.level)
        eps_NC[rows, predicted] *= -1
        v_NC = np.clip(v_NC + eps_NC, 0, 1)
        lower = np.where(similarity > 0, _similarity(v_NC, predicted, found.similarity), 0.0)
        lower, probability = _output(self.weight, v_NC, predicted, lower)
        return predicted, lower, probability[rows, predicted]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexEstimate:
    """What the index calibration says about N rows.

    Attributes
    ----------
    prediction : int64 (N,)
    similarity : float64 (N,), ``q~`` at the lower end of its band
    probability : float64 (N,), of the prediction, less its spread over restarts; 0 at least
    admitted : bool (N,)
    """

    prediction: Ints
    similarity: Float64
    probability: Float64
    admitted: Bools


@dataclass(frozen=True, kw_only=True)
class IndexCalibration:
    """The index calibration over J restarts; the first decides, the others give the spread.

    Attributes
    ----------
    parts : J calibrations, best first
    least_similarity : threshold of ``q~``, spread included; infinity admits nothing
    """

    parts: tuple[RankCalibration, ...]
    least_similarity: float

    @classmethod
    def fit(cls, estimators: Sequence[SdmEstimator]) -> Self:
        """Calibrate every restart. ``estimators`` is best first and not empty."""
        parts = tuple(RankCalibration.fit(e) for e in estimators)
        least = np.array([p.region.least_similarity for p in parts])
        margin = _margin(least, parts[0].region.level) if np.isfinite(least[0]) else 0.0
        return cls(parts=parts, least_similarity=float(least[0] + margin))

    def estimate(self, x_ND: Float) -> IndexEstimate:
        """Judge N rows."""
        predicted, similarity, probability = self.parts[0].lower(x_ND)
        spread = np.array(
            [self._spread(int(c), int(q)) for c, q in zip(predicted, similarity, strict=True)]
        )
        probability = np.maximum(probability - spread, 0.0)
        enough = probability >= self.parts[0].region.least_probability[predicted]
        return IndexEstimate(
            prediction=predicted,
            similarity=similarity,
            probability=probability,
            admitted=np.asarray((similarity >= self.least_similarity) & enough),
        )

    def _spread(self, predicted: int, floor: int) -> float:
        """Return the margin of a bin; one that fewer than two of several restarts know is 1."""
        medians = [p.bins[predicted, floor] for p in self.parts if (predicted, floor) in p.bins]
        if len(medians) < min(2, len(self.parts)):
            return 1.0
        return _margin(np.array(medians), self.parts[0].region.level)


def rank(ranked: Sequence[Float64], probability_NC: Float64) -> Float64:
    """Return each class output's share of calibration points at or below it, (N, C)."""
    columns = [
        np.searchsorted(each, probability_NC[:, c], side="right") / max(len(each), 1)
        for c, each in enumerate(ranked)
    ]
    return np.stack(columns, axis=1)


def fit_weight(v_NC: Float64, label_N: Ints, similarity_N: Float64) -> Float64:
    """Return W (C, C), without bias, of least loss in base ``2 + q~``."""
    from scipy.optimize import minimize

    num_classes = v_NC.shape[1]
    start = np.eye(num_classes)
    target_NC = start[label_N]

    def loss(flat: Float64) -> tuple[float, Float64]:
        w_CC = flat.reshape(num_classes, num_classes)
        logit_NC = v_NC @ w_CC.T
        value = sdm_loss(logit_NC, label_N, similarity_N, 1.0).mean()
        # d loss / d logit: the factor ln(2 + q~) of the exponent cancels with the base.
        slope_NC = (sdm(logit_NC, similarity_N, 1.0) - target_NC) / len(v_NC)
        away = w_CC - start
        gradient = slope_NC.T @ v_NC + _PULL * away
        return float(value + 0.5 * _PULL * np.square(away).sum()), gradient.ravel()

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B")
    return np.asarray(found.x.reshape(num_classes, num_classes), dtype=np.float64)


def _similarity(v_NC: Float64, predicted_N: Ints, similarity_N: Ints) -> Float64:
    """Return ``q~ = v_predicted ln(2 + q)``."""
    chosen = v_NC[np.arange(len(v_NC)), predicted_N]
    return np.asarray(chosen * np.log(2 + similarity_N.astype(np.float64)))


def _output(
    weight_CC: Float64, v_NC: Float64, predicted_N: Ints, similarity_N: Float64
) -> tuple[Float64, Float64]:
    """Return ``q~``, 0 where the ranks favour another class, and the probabilities (N, C)."""
    logit_NC = v_NC @ weight_CC.T
    kept = np.where(logit_NC.argmax(axis=1) == predicted_N, similarity_N, 0.0)
    return kept, sdm(logit_NC, kept, 1.0)


def _margin(value_J: Float64, level: float) -> float:
    """Return the Cauchy quantile at ``level`` with the values' median absolute deviation."""
    middle = np.median(value_J)
    if not np.isfinite(middle):
        return float("inf")
    scale = float(np.median(np.abs(value_J - middle)))
    return 0.0 if scale == 0 else scale * float(np.tan(np.pi * (level - 0.5)))
