"""What one worker has counted, as plain data that adds up over workers."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Any

from crossroads.gateway.telemetry.catalogue import METRICS

Key = tuple[str, tuple[str, ...]]
"""Name of a metric and the values of its labels, in the catalogue's order."""


@dataclass(slots=True)
class Snapshot:
    """Values by name and labels.

    Attributes
    ----------
    counters, gauges : one number each
    histograms : calls per bucket (the last: beyond every bound), then the sum of what was observed
    """

    counters: dict[Key, float] = field(default_factory=dict)
    histograms: dict[Key, MutableSequence[float]] = field(default_factory=dict)
    gauges: dict[Key, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "counters": [[name, list(labels), v] for (name, labels), v in self.counters.items()],
            "histograms": [
                [name, list(labels), list(v)] for (name, labels), v in self.histograms.items()
            ],
            "gauges": [[name, list(labels), v] for (name, labels), v in self.gauges.items()],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Snapshot:
        """Rebuild from `to_dict`; metrics this version does not know are left out."""
        return cls(**{kind: _read(data.get(kind, ())) for kind in cls.__slots__})

    def total(self, name: str) -> float:
        """Return a counter's sum over its labels."""
        return sum(value for (found, _), value in self.counters.items() if found == name)


def _read(rows: Iterable[Any]) -> dict[Key, Any]:
    return {
        (name, tuple(labels)): value
        for name, labels, value in rows
        if name in METRICS and len(labels) == len(METRICS[name].labels)
    }


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Add up: counters, histograms and most gauges are sums, states are the worst."""
    whole = Snapshot()
    for snapshot in snapshots:
        for key, value in snapshot.counters.items():
            whole.counters[key] = whole.counters.get(key, 0.0) + value
        for key, counts in snapshot.histograms.items():
            known = whole.histograms.get(key)
            if known is None:
                whole.histograms[key] = list(counts)
            elif len(known) == len(counts):
                whole.histograms[key] = [a + b for a, b in zip(known, counts, strict=True)]
        for key, value in snapshot.gauges.items():
            before = whole.gauges.get(key)
            if before is None:
                whole.gauges[key] = value
            elif METRICS[key[0]].merge == "max":
                whole.gauges[key] = max(before, value)
            else:
                whole.gauges[key] = before + value
    return whole


def quantile(counts: Sequence[float], bounds: tuple[float, ...], q: float) -> float | None:
    """Return the ``q`` quantile of a histogram, linear within a bucket; None of an empty one.

    Beyond the last bound it is the last bound.
    """
    buckets = counts[:-1]
    whole = sum(buckets)
    if whole <= 0:
        return None
    rank, seen = q * whole, 0.0
    for index, count in enumerate(buckets[: len(bounds)]):
        if count and seen + count >= rank:
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * max(0.0, rank - seen) / count
        seen += count
    return bounds[-1]
