"""What verification is compared with: softmax thresholds, temperature, conformal sets.

Each takes class outputs (logits) and calibration labels and says which points to accept. None looks
at the support, so none can know that a point is far from all it has seen.

Guo et al. (2017): temperature scaling. Romano, Sesia and Candes, Classification with valid and
adaptive coverage (2020): APS. Angelopoulos, Bates, Malik and Jordan, Uncertainty sets for image
classifiers using conformal prediction (2021): RAPS.

Axes: N points, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.calibration.activation import SOFTMAX_SIMILARITY, sdm, sdm_loss
from crossroads.core.calibration.region import check_level

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def softmax_of(logit_NC: Float) -> Float64:
    """Return the softmax, float64 (N, C)."""
    return sdm(logit_NC, SOFTMAX_SIMILARITY, 1.0)


def accept_by_probability(probability_NC: Float64, level: float) -> Bools:
    """Accept where the likeliest class has at least this probability, shape (N,)."""
    return np.asarray(probability_NC.max(axis=1) >= check_level(level))


def fit_temperature(logit_NC: Float, label_N: Ints) -> float:
    """Return the temperature in [0.01, 100] of least log loss of ``logit / temperature``."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = logit_NC / np.exp(log_temperature)
        return float(sdm_loss(scaled, label_N, SOFTMAX_SIMILARITY, 1.0).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.01), np.log(100)), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True, kw_only=True, slots=True)
class ConformalSets:
    """Adaptive prediction sets (APS), or regularised ones (RAPS) where ``penalty`` is above 0.

    A class's score is the probability of all likelier classes, a random share of its own, and
    ``penalty`` for each rank past ``free_ranks``. The set holds the classes up to the threshold;
    it covers the true class with the stated probability on data like the calibration set. A point
    is accepted where its set has exactly one class.

    Attributes
    ----------
    threshold : the calibration scores' quantile
    penalty, free_ranks : of RAPS; 0 penalty is APS
    """

    threshold: float
    penalty: float = 0.0
    free_ranks: int = 1

    @classmethod
    def fit(
        cls,
        probability_NC: Float64,
        label_N: Ints,
        level: float,
        rng: np.random.Generator,
        *,
        penalty: float = 0.0,
        free_ranks: int = 1,
    ) -> Self:
        """Read the threshold off calibration points."""
        own = _scores(probability_NC, rng, penalty, free_ranks)[np.arange(len(label_N)), label_N]
        rank = int(np.ceil((len(own) + 1) * check_level(level)))
        threshold = np.inf if rank > len(own) else float(np.sort(own)[rank - 1])
        return cls(threshold=threshold, penalty=penalty, free_ranks=free_ranks)

    def sets(self, probability_NC: Float64, rng: np.random.Generator) -> Bools:
        """Return membership, bool (N, C)."""
        scores = _scores(probability_NC, rng, self.penalty, self.free_ranks)
        return np.asarray(scores <= self.threshold)

    def accepts(self, probability_NC: Float64, rng: np.random.Generator) -> Bools:
        """Return where the set is the likeliest class alone, shape (N,)."""
        return np.asarray(self.sets(probability_NC, rng).sum(axis=1) == 1)


def _scores(
    probability_NC: Float64, rng: np.random.Generator, penalty: float, free_ranks: int
) -> Float64:
    """Return each class's score; within a row it ascends with the rank, so one draw a row."""
    order = np.argsort(-probability_NC, axis=1, kind="stable")
    descending = np.take_along_axis(probability_NC, order, axis=1)
    share = rng.random((len(order), 1))
    ranked = np.cumsum(descending, axis=1) - descending + share * descending
    ranked += penalty * np.maximum(np.arange(1, order.shape[1] + 1) - free_ranks, 0)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, ranked, axis=1)
    return scores
