"""From snapshots to the text that Prometheus reads, by prometheus-client."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from itertools import accumulate, groupby
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from crossroads import __version__
from crossroads.gateway.telemetry.catalogue import METRICS
from crossroads.gateway.telemetry.snapshot import Key, Snapshot

T = TypeVar("T")


def render(snapshot: Snapshot) -> bytes:
    """Return every metric in Prometheus' text format; takes milliseconds."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    return generate_latest(registry)


class _Collector:
    """What prometheus-client asks for metric families."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("crossroads_build_info", "The version.", labels=("version",))
        info.add_metric((__version__,), 1)
        yield info
        yield from map(_counter, *_by_name(self._snapshot.counters))
        yield from map(_gauge, *_by_name(self._snapshot.gauges))
        yield from map(_histogram, *_by_name(self._snapshot.histograms))


def _by_name(values: dict[Key, T]) -> tuple[list[str], list[dict[tuple[str, ...], T]]]:
    grouped = groupby(sorted(values, key=lambda key: key[0]), key=lambda key: key[0])
    found = {name: {key[1]: values[key] for key in keys} for name, keys in grouped}
    return list(found), list(found.values())


def _counter(name: str, values: dict[tuple[str, ...], float]) -> Metric:
    metric = METRICS[name]
    family = CounterMetricFamily(name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _gauge(name: str, values: dict[tuple[str, ...], float]) -> Metric:
    metric = METRICS[name]
    family = GaugeMetricFamily(name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _histogram(name: str, values: dict[tuple[str, ...], MutableSequence[float]]) -> Metric:
    metric = METRICS[name]
    family = HistogramMetricFamily(name, metric.help, labels=metric.labels)
    bounds = [*map(str, metric.bounds), "+Inf"]
    for labels, counts in values.items():
        buckets = list(zip(bounds, accumulate(counts[:-1]), strict=True))
        family.add_metric(labels, buckets, counts[-1])
    return family
