"""Intervals of estimates from calls that come in sessions.

An estimate is ``mean(add) + mean(num) / mean(den)`` over N calls: the second part is 0 for plain
means. Calls of one session are resampled, and their deviations summed, together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation.log import Float64, Ints

_CELLS = 4_000_000  # of a block of bootstrap counts, to bound memory


@dataclass(frozen=True, slots=True)
class Terms:
    """What an estimate is made of, float (N,) each; ``num`` and ``den`` None for a plain mean."""

    add: Float64
    num: Float64 | None = None
    den: Float64 | None = None

    def minus(self, value_N: Float64) -> Terms:
        """Return the terms of the difference to the mean of other values of the same calls."""
        return Terms(self.add - value_N, self.num, self.den)

    def plus(self, value_N: Float64) -> Terms:
        return Terms(self.add + value_N, self.num, self.den)

    @property
    def value(self) -> float:
        """The estimate; NaN where every weight is 0."""
        total = float(self.add.mean())
        if self.num is None or self.den is None:
            return total
        weight = float(self.den.mean())
        return total + float(self.num.mean()) / weight if weight > 0 else float("nan")

    @property
    def influence(self) -> Float64:
        """How much each call moves the estimate, float (N,), mean 0."""
        found = np.asarray(self.add - self.add.mean())
        if self.num is None or self.den is None:
            return found
        weight = self.den.mean()
        if weight <= 0:
            return np.full(len(found), np.nan)
        return np.asarray(found + (self.num - self.num.mean() / weight * self.den) / weight)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with two intervals; what is not finite is None.

    Attributes
    ----------
    value : the estimate
    low, high : asymptotic, Student's t over sessions
    bootstrap_low, bootstrap_high : percentiles over resampled sessions
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def interval(
    terms: Terms, cluster_N: Ints, *, level: float = 0.95, draws: int = 1_000, seed: int = 0
) -> Interval:
    """Return the estimate of these terms with its intervals.

    ``cluster_N`` numbers the sessions from 0. With fewer than two sessions there is no interval.
    ``draws`` 0 leaves the bootstrap out. Raises InputError unless 0 < level < 1 and draws >= 0.
    """
    if not 0 < level < 1 or draws < 0:
        raise InputError(
            f"interval: expected a level between 0 and 1 and draws >= 0, got {level!r}, {draws!r}"
        )
    low, high = asymptotic(terms, cluster_N, level)
    ends = bootstrap(terms, cluster_N, level, draws, seed) if draws else (np.nan, np.nan)
    return Interval(*(_known(v) for v in (terms.value, low, high, *ends)))


def asymptotic(terms: Terms, cluster_N: Ints, level: float) -> tuple[float, float]:
    """Return the ends of the t interval, NaN with fewer than two sessions."""
    from scipy.special import stdtrit

    num_clusters = int(cluster_N.max()) + 1
    if num_clusters < 2:
        return float("nan"), float("nan")
    half = float(stdtrit(num_clusters - 1, (1 + level) / 2)) * standard_error(terms, cluster_N)
    return terms.value - half, terms.value + half


def standard_error(terms: Terms, cluster_N: Ints) -> float:
    """Return the standard error of an estimate, robust to correlation within sessions."""
    sums = np.bincount(cluster_N, weights=terms.influence)
    correction = len(sums) / max(len(sums) - 1, 1)
    return float(np.sqrt(correction * np.square(sums).sum()) / len(cluster_N))


def bootstrap(
    terms: Terms, cluster_N: Ints, level: float, draws: int, seed: int
) -> tuple[float, float]:
    """Return the percentile interval over resampled sessions."""
    num_clusters = int(cluster_N.max()) + 1
    if num_clusters < 2:
        return float("nan"), float("nan")
    ones = np.ones(len(cluster_N))
    parts = [terms.add, ones]
    if terms.num is not None and terms.den is not None:
        parts += [terms.num, terms.den]
    sums_CP = np.stack([np.bincount(cluster_N, weights=part) for part in parts], axis=1)
    rng = np.random.default_rng(seed)
    share = np.full(num_clusters, 1 / num_clusters)
    block = max(1, _CELLS // num_clusters)
    values: list[Float64] = []
    for start in range(0, draws, block):
        counts = rng.multinomial(num_clusters, share, size=min(block, draws - start))
        total = counts @ sums_CP
        value = total[:, 0] / total[:, 1]
        if len(parts) > 2:
            positive = total[:, 3] > 0
            ratio = np.divide(total[:, 2], total[:, 3], where=positive, out=np.zeros(len(total)))
            value = (value + ratio)[positive]
        values.append(value)
    found = np.concatenate(values)
    if len(found) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def clusters(session_N: Any) -> Ints:
    """Number sessions from 0, in the order of their first call."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in session_N], dtype=np.int64)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
