"""The high-reliability region: where both class-conditional accuracies reach a stated level.

A point's effective similarity is ``q' = min(q, (2+q)^sdm_predicted)``; below 1 it is out of
distribution. Among calibration points, the region is the largest ``q' >= q_min`` in which the
(1 - level) quantile psi_c of each true class's own probability reaches the level. Where there is
none ``q_min`` is infinite and nothing is admitted: the model is too weak for the level.

Axes: N points, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Thresholds of admission at a level.

    Attributes
    ----------
    level : in (1/2, 1], asked of both class-conditional accuracies
    least_similarity : least effective similarity; infinity admits nothing
    least_probability : float64 (C,), least probability of the predicted class
    """

    level: float
    least_similarity: float
    least_probability: Float64

    @property
    def is_empty(self) -> bool:
        """Whether nothing is ever admitted."""
        return not np.isfinite(self.least_similarity)

    def admits(self, effective_N: Float64, probability_NC: Float64) -> Bools:
        """Return which points are admitted, shape (N,); the predicted class is the likeliest."""
        predicted = probability_NC.argmax(axis=1)
        enough = probability_NC.max(axis=1) >= self.least_probability[predicted]
        return np.asarray((effective_N >= self.least_similarity) & enough)


def check_level(level: float) -> float:
    """Return the level. Raises InputError unless it lies in (1/2, 1]."""
    if not 0.5 < level <= 1:
        raise InputError(f"level: expected a share in (0.5, 1], got {level!r}; 0.95 is usual")
    return float(level)


def effective_similarity(similarity_N: npt.NDArray[Any], probability_N: Float64) -> Float64:
    """Return ``q' = min(q, (2+q)^p)`` with p of the predicted class, float64 (N,)."""
    q = similarity_N.astype(np.float64)
    return np.minimum(q, (2 + q) ** probability_N)


def find_region(
    effective_N: Float64, probability_NC: Float64, label_N: Ints, level: float
) -> Region:
    """Return the region of a calibration set.

    Parameters
    ----------
    effective_N : effective similarities
    probability_NC : class probabilities
    label_N : true classes, in [0, C)
    level : see `check_level`
    """
    level, num_classes = check_level(level), probability_NC.shape[1]
    own_N = probability_NC[np.arange(len(label_N)), label_N]
    for least in np.unique(effective_N[effective_N >= 1]):
        kept = effective_N >= least
        psi = np.array([_quantile(own_N[kept & (label_N == c)], level) for c in range(num_classes)])
        if (psi >= level).all():
            return Region(level=level, least_similarity=float(least), least_probability=psi)
    return Region(
        level=level, least_similarity=np.inf, least_probability=np.full(num_classes, np.inf)
    )


def _quantile(value_N: Float64, level: float) -> float:
    """Return the (1 - level) quantile by rank, 0 where there is no value."""
    if len(value_N) == 0:
        return 0.0
    rank = min(int((1 - level) * len(value_N)), len(value_N) - 1)
    return float(np.partition(value_N, rank)[rank])


def band(effective_N: Float64, effective_by_class: Sequence[Float64], level: float) -> Float64:
    """Return the half width of the distance's sampling band for each point, float64 (N,).

    The inequality of Dvoretzky, Kiefer and Wolfowitz at ``level``, with the number of calibration
    points of the rarest class whose effective similarity is below the point's; 1, no knowledge,
    where a class has none. ``effective_by_class`` holds those of the C classes, each ascending.
    """
    counts = [np.searchsorted(each, effective_N, side="left") for each in effective_by_class]
    return dkw(np.min(counts, axis=0), level)


def dkw(count: npt.ArrayLike, level: float) -> Float64:
    """Return ``sqrt(ln(2 / (1 - level)) / (2 count))``, at most 1; 1 for a count of 0.

    At a level of 1 it is 1 whatever the count.
    """
    number = np.asarray(count, dtype=np.float64)
    if level >= 1:
        return np.ones(number.shape)
    width = np.sqrt(np.log(2 / (1 - level)) / (2 * np.maximum(number, 1)))
    return np.where(number > 0, np.minimum(width, 1.0), 1.0)
