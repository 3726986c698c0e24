"""How sure a mean is: intervals over seeds, over samples, and of paired differences.

Nothing here invents certainty: one value has a mean and no interval, and a figure that is undefined
on some seed has no mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A figure over n seeds.

    Attributes
    ----------
    mean : None where the figure is undefined (not finite) on any seed
    low, high : ends of the interval of the mean; None with fewer than two seeds
    per_seed : the values, None where undefined
    """

    mean: float | None
    low: float | None
    high: float | None
    per_seed: tuple[float | None, ...]

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, for printing mean +- half width."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "per_seed": list(self.per_seed),
        }


def summarise(values: Sequence[float | None], *, level: float = 0.95) -> Summary:
    """Return the mean over seeds with its Student t interval.

    The interval is ``mean +- t(n - 1) * s / sqrt(n)``, s the sample standard deviation. The seeds
    of an arena draw overlapping splits of one table, so it tells how much the figure moves with the
    split, not how it would move on other data. Raises InputError unless 0 < level < 1.
    """
    _check_level(level)
    known = tuple(float(v) if v is not None and np.isfinite(v) else None for v in values)
    finite = [v for v in known if v is not None]
    if not finite or len(finite) < len(known):
        return Summary(mean=None, low=None, high=None, per_seed=known)
    mean = float(np.mean(finite))
    if len(finite) == 1:
        return Summary(mean=mean, low=None, high=None, per_seed=known)
    from scipy.special import stdtrit

    n = len(finite)
    half = float(stdtrit(n - 1, (1 + level) / 2) * np.std(finite, ddof=1) / np.sqrt(n))
    return Summary(mean=mean, low=mean - half, high=mean + half, per_seed=known)


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None], *, level: float = 0.95
) -> Summary:
    """Return ``first - second`` seed by seed, with the interval of its mean.

    Pairing removes what the two share, the difficulty of a split, so that the interval is often
    much narrower than those of the two figures. Raises InputError when the lengths differ.
    """
    if len(first) != len(second):
        raise InputError(
            f"paired difference: expected the same seeds on both sides, got {len(first)} and "
            f"{len(second)} values"
        )
    gaps = [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]
    return summarise(gaps, level=level)


def bootstrap_interval(
    values: npt.ArrayLike, *, seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of independent values, shape (N,).

    For one split with N judged prompts, where seeds give no spread; the same seed gives the same
    interval. Raises InputError on an empty or non-finite input, or fewer than one draw.
    """
    _check_level(level)
    value_N = np.asarray(values, dtype=np.float64).ravel()
    if len(value_N) == 0 or not np.isfinite(value_N).all():
        raise InputError("bootstrap interval: expected at least one value, all of them finite")
    if draws < 1:
        raise InputError(f"bootstrap interval: expected at least one draw, got {draws}")
    rng = np.random.default_rng(seed)
    # One draw at a time: N may be large, and N x draws indices would not fit in memory.
    means = [value_N[rng.integers(len(value_N), size=len(value_N))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"interval: expected a level between 0 and 1, got {level!r}")
