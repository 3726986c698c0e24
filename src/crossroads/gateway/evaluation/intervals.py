"""Intervals of estimates from calls that come in sessions.

An estimate is ``mean(add) + mean(num) / mean(den)`` over N calls: the second part is 0 for plain
means. Calls of one session are resampled, and their deviations summed, together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation.log import Float64, Ints

Name = TypeVar("Name")

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


def intervals(
    parts: Mapping[Name, Terms],
    cluster_N: Ints,
    *,
    level: float = 0.95,
    draws: int = 1_000,
    seed: int = 0,
) -> dict[Name, Interval]:
    """Return the estimates of these terms with their intervals, all from the same resamples.

    ``cluster_N`` numbers the sessions from 0. With fewer than two sessions there is no interval.
    ``draws`` 0 leaves the bootstrap out. Raises InputError unless 0 < level < 1 and draws >= 0.
    """
    if not 0 < level < 1 or draws < 0:
        raise InputError(
            f"interval: expected a level between 0 and 1 and draws >= 0, got {level!r}, {draws!r}"
        )
    resampled = bootstrap(parts, cluster_N, level=level, draws=draws, seed=seed)
    found = {}
    for name, terms in parts.items():
        ends = (*asymptotic(terms, cluster_N, level), *resampled[name])
        found[name] = Interval(*(_known(value) for value in (terms.value, *ends)))
    return found


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
    sums = _sums(terms.influence, cluster_N)
    correction = len(sums) / max(len(sums) - 1, 1)
    return float(np.sqrt(correction * np.square(sums).sum()) / len(cluster_N))


def bootstrap(
    parts: Mapping[Name, Terms], cluster_N: Ints, *, level: float, draws: int, seed: int
) -> dict[Name, tuple[float, float]]:
    """Return the percentile interval of each over resampled sessions; NaN where there is none."""
    num_clusters = int(cluster_N.max()) + 1
    if num_clusters < 2 or draws == 0:
        return dict.fromkeys(parts, (float("nan"), float("nan")))
    zero, one = np.zeros(len(cluster_N)), np.ones(len(cluster_N))
    columns = [one]
    for terms in parts.values():
        columns += [terms.add, zero if terms.num is None else terms.num]
        columns += [one if terms.den is None else terms.den]
    sums_CP = np.stack([_sums(each, cluster_N) for each in columns], axis=1)
    totals = _resampled(sums_CP, draws, np.random.default_rng(seed))
    found = {}
    for n, name in enumerate(parts):
        add, num, den = totals[:, 3 * n + 1 : 3 * n + 4].T
        known = den > 0
        values = add[known] / totals[known, 0] + num[known] / den[known]
        ends = (
            np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if known.any() else [np.nan] * 2
        )
        found[name] = float(ends[0]), float(ends[1])
    return found


def _resampled(sums_CP: Float64, draws: int, rng: np.random.Generator) -> Float64:
    """Return the sums of ``draws`` resamples of the sessions, float (draws, P)."""
    num_clusters = len(sums_CP)
    share = np.full(num_clusters, 1 / num_clusters)
    block = max(1, _CELLS // num_clusters)
    parts = [
        rng.multinomial(num_clusters, share, size=min(block, draws - start)) @ sums_CP
        for start in range(0, draws, block)
    ]
    return np.concatenate(parts)


def _sums(value_N: Float64, cluster_N: Ints) -> Float64:
    return np.asarray(np.bincount(cluster_N, weights=value_N), dtype=np.float64)


def clusters(session_N: Any) -> Ints:
    """Number sessions from 0, in the order of their first call."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in session_N], dtype=np.int64)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
