"""Figures of arms as a verdict shows them: every seed, mean, 95 % interval."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from crossroads.core.statistics import Summary
from crossroads.moe.claims.arms import Arms


def rounded(found: Summary, digits: int = 4) -> dict[str, Any]:
    """Return a summary as plain data."""

    def short(value: float | None) -> float | None:
        return None if value is None else round(value, digits)

    return {
        "mean": short(found.mean),
        "low": short(found.low),
        "high": short(found.high),
        "per_seed": [short(v) for v in found.per_seed],
    }


def differences(
    arms: Arms, pairs: Iterable[tuple[str, str, str]], digits: int = 4
) -> dict[str, Any]:
    """Return paired differences by "figure: first - second" for (first, second, figure)."""
    return {
        f"{figure}: {first} - {second}": rounded(arms.difference(first, second, figure), digits)
        for first, second, figure in pairs
    }


def above(found: Summary, limit: float = 0.0) -> bool:
    """Return whether the whole interval of a mean lies above ``limit``."""
    return found.low is not None and found.low > limit
