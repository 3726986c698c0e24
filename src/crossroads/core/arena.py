"""The arena: tasks x routers x seeds under one contract, one leaderboard.

A task knows its routers by name and can run one of them with one seed; the arena runs the grid in
parallel, keeps every finished cell on disk (a killed arena continues), and summarises the seeds.
Seeds are paired: every router meets the same splits, so differences between routers are compared
seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """How a measured figure is called, shown and ordered."""

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool = True
    digits: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one router did on one seed: plain data, so that it can be kept as JSON."""

    metrics: Mapping[str, float]
    fit_seconds: float
    decide_seconds: float  # mean seconds per routed item
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """What a family offers to the arena. Must be picklable."""

    name: str
    family: str
    metrics: Sequence[Metric]  # the first one orders the leaderboard
    baselines: Sequence[str]  # routers always run, marked in the report
    description: str  # one line: data, size, whether it is replayed or simulated
    fingerprint: str  # changes whenever an old cell would no longer be valid

    def run(self, router: str, seed: int) -> Cell:
        """Fit and judge one router. Same arguments, same figures (timings aside)."""
        ...
