"""Figures that other parts keep, read when a snapshot is made: never while a call runs."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.core.errors import unknown_name
from crossroads.gateway.telemetry.catalogue import METRICS
from crossroads.gateway.telemetry.health import SEVERITY
from crossroads.gateway.telemetry.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Reading:
    """A value of a counter or gauge of the catalogue.

    Raises UsageError for a name the catalogue lacks.
    """

    name: str
    value: float
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in METRICS:
            raise unknown_name("metric", self.name, METRICS)


Source = Callable[[], Iterable[Reading]]

_STATES = {"closed": 0.0, "half-open": 1.0, "half_open": 1.0, "open": 2.0}
_PAGE = os.sysconf("SC_PAGE_SIZE")


def engine_source(health: Callable[[], Mapping[str, Mapping[str, Any]]]) -> Source:
    """Return a source for what an engine says of its models: ``state``, ``in_flight``."""

    def read() -> Iterable[Reading]:
        for model, facts in health().items():
            state = _STATES.get(str(facts.get("state", "closed")), 0.0)
            yield Reading("crossroads_breaker_state", state, (model,))
            in_flight = float(facts.get("in_flight") or 0)
            yield Reading("crossroads_upstream_in_flight", in_flight, (model,))

    return read


def health_source(health: Callable[[], Mapping[str, Any]]) -> Source:
    """Return a source for a composed health: one gauge a part."""

    def read() -> Iterable[Reading]:
        for part, facts in health()["parts"].items():
            yield Reading("crossroads_degraded", SEVERITY[facts["status"]], (part,))

    return read


def process_source() -> Iterable[Reading]:
    """Read this process's memory and CPU time."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    yield Reading("crossroads_cpu_seconds", spent.ru_utime + spent.ru_stime)
    yield Reading("crossroads_resident_bytes", _resident_bytes())
    yield Reading("crossroads_workers", 1)


def read_into(snapshot: Snapshot, sources: Iterable[Source]) -> list[str]:
    """Add every source's readings; return what went wrong, a line for each source that failed."""
    problems = []
    for source in sources:
        try:
            for reading in source():
                kind = METRICS[reading.name].kind
                values = snapshot.counters if kind == "counter" else snapshot.gauges
                values[reading.name, reading.labels] = reading.value
        except Exception as error:  # noqa: BLE001 - metrics go on without a source that is broken
            problems.append(f"{type(error).__name__}: {error}")
    return problems


def _resident_bytes() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(pages * _PAGE)
