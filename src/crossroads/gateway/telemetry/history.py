"""The last hour of the figures, for the dashboard's charts."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

from crossroads.gateway.telemetry.catalogue import DURATION
from crossroads.gateway.telemetry.meter import PHASES
from crossroads.gateway.telemetry.snapshot import Snapshot, quantile

_DURATIONS = "gen_ai_client_operation_duration_seconds"
_KEPT = frozenset(
    {_DURATIONS, "crossroads_phase_seconds", "crossroads_requests", "crossroads_cost_usd"}
    | {"crossroads_saved_usd", "crossroads_fallbacks", "crossroads_limited", "crossroads_in_flight"}
    | {"crossroads_estimated_quality", "crossroads_compared_calls", "crossroads_chosen_cost_usd"}
    | {"crossroads_estimated_cost_usd", "crossroads_compared_cost_usd"}
    | {"crossroads_workers", "crossroads_resident_bytes"}
)
UNANSWERED = "unanswered"  # in place of a model, for calls that none answered
_MOST_POINTS = 120  # of a series; samples are cumulative, so leaving some out loses nothing


class History:
    """Samples the figures of all workers and gives their changes as time series.

    Parameters
    ----------
    figures : where they come from, such as ``GatewayTelemetry.figures``
    step : seconds between two samples
    span : seconds kept
    """

    def __init__(
        self,
        figures: Callable[[], Awaitable[Snapshot]],
        *,
        step: float = 5.0,
        span: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._figures = figures
        self._step = step
        self._clock = clock
        self._samples: deque[tuple[float, Snapshot]] = deque(maxlen=max(2, int(span / step) + 1))
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.sample()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def sample(self) -> None:
        """Take one sample now."""
        self._samples.append((self._clock(), _slim(await self._figures())))

    async def series(self, seconds: float = 900.0) -> dict[str, Any]:
        """Return the last ``seconds`` as plain data: points, sums, models, phases, percentiles."""
        return await asyncio.to_thread(_series, list(self._samples), seconds)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._step)
            await self.sample()


Sample = tuple[float, Snapshot]


def _slim(snapshot: Snapshot) -> Snapshot:
    """Return what the charts need, small enough to keep for hundreds of samples."""
    return Snapshot(
        {key: value for key, value in snapshot.counters.items() if key[0] in _KEPT},
        {k: array("d", v) for k, v in snapshot.histograms.items() if k[0] in _KEPT},
        {key: value for key, value in snapshot.gauges.items() if key[0] in _KEPT},
    )


def _series(samples: list[Sample], seconds: float) -> dict[str, Any]:
    if len(samples) < 2:
        return {"times": [], "requests_per_s": {}, "totals": {}, "models": {}, "phases": {}}
    since = samples[-1][0] - seconds
    start = max(1, sum(1 for at, _ in samples if at < since))
    samples = samples[start - 1 :]
    stride = -(-(len(samples) - 1) // _MOST_POINTS)
    samples = samples[::-1][::stride][::-1]
    first, last = samples[0][1], samples[-1][1]
    saved = _saved(first, last)
    best = None if saved is None else saved["best_model"]
    changes = [(b[0] - a[0], a[1], b[1]) for a, b in pairwise(samples)]
    return {
        "times": [round(at, 3) for at, _ in samples[1:]],
        "requests_per_s": _by_model(samples),
        "failed_per_s": [_failed(a, b) / max(1e-3, s) for s, a, b in changes],
        "cost_usd": [_change(a, b, "crossroads_cost_usd") for _, a, b in changes],
        "expected_usd": [_of(a, b, "crossroads_chosen_cost_usd", best) for _, a, b in changes],
        "always_best_usd": [
            _of(a, b, "crossroads_estimated_cost_usd", best) for _, a, b in changes
        ],
        "p50_s": [_latency(a, b, 0.5) for _, a, b in changes],
        "p95_s": [_latency(a, b, 0.95) for _, a, b in changes],
        "totals": _totals(first, last),
        "saved": saved,
        "models": _models(first, last),
        "phases": _phases(first, last),
        "in_flight": last.gauges.get(("crossroads_in_flight", ()), 0),
        "workers": last.gauges.get(("crossroads_workers", ()), 0),
        "resident_bytes": last.gauges.get(("crossroads_resident_bytes", ()), 0),
    }


def _change(before: Snapshot, after: Snapshot, name: str) -> float:
    return max(0.0, after.total(name) - before.total(name))


def _by_label(before: Snapshot, after: Snapshot, name: str, index: int) -> dict[str, float]:
    """Return a counter's change by one of its labels."""
    found: dict[str, float] = {}
    for key, value in after.counters.items():
        if key[0] == name:
            label = key[1][index]
            change = value - before.counters.get(key, 0.0)
            found[label] = found.get(label, 0.0) + max(0.0, change)
    return found


def _by_model(samples: list[Sample]) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    for index, (a, b) in enumerate(pairwise(samples)):
        for model, count in _by_label(a[1], b[1], "crossroads_requests", 2).items():
            row = rates.setdefault(model or UNANSWERED, [0.0] * (len(samples) - 1))
            row[index] = count / max(1e-3, b[0] - a[0])
    return {model: row for model, row in rates.items() if any(row)}


def _failed(before: Snapshot, after: Snapshot) -> float:
    """Count calls that failed without the client's doing."""
    by_status = _by_label(before, after, "crossroads_requests", 3)
    return sum(n for status, n in by_status.items() if status != "200" and not _is_refusal(status))


def _refused(before: Snapshot, after: Snapshot) -> float:
    by_status = _by_label(before, after, "crossroads_requests", 3)
    return sum(n for status, n in by_status.items() if _is_refusal(status))


def _is_refusal(status: str) -> bool:
    """Whether it is 4xx: a client's mistake, a limit, or a client that left (499)."""
    return len(status) == 3 and status.startswith("4")


def _latency(before: Snapshot, after: Snapshot, q: float, model: str = "") -> float | None:
    changes = [
        [b - a for a, b in zip(before.histograms.get(key, [0.0] * len(now)), now, strict=True)]
        for key, now in after.histograms.items()
        if key[0] == _DURATIONS and model in ("", key[1][1])
    ]
    if not changes:
        return None
    return quantile([sum(column) for column in zip(*changes, strict=True)], DURATION, q)


def _totals(first: Snapshot, last: Snapshot) -> dict[str, Any]:
    return {
        "requests": _change(first, last, "crossroads_requests"),
        "failed": _failed(first, last),
        "refused": _refused(first, last),
        "cost_usd": _change(first, last, "crossroads_cost_usd"),
        "cache_saved_usd": _change(first, last, "crossroads_saved_usd"),
        "fallbacks": _change(first, last, "crossroads_fallbacks"),
        "limited": _change(first, last, "crossroads_limited"),
        "p50_s": _latency(first, last, 0.5),
        "p95_s": _latency(first, last, 0.95),
    }


def _saved(first: Snapshot, last: Snapshot) -> dict[str, Any] | None:
    """Compare with always asking the model of the highest mean estimate.

    Estimates with estimates, of the same calls: what was expected of the models chosen with what
    was expected of the best one. A bill beside them may differ from both.
    """
    quality = _by_label(first, last, "crossroads_estimated_quality", 0)
    if not quality:
        return None
    best = max(quality, key=quality.__getitem__)
    always = _of(first, last, "crossroads_estimated_cost_usd", best)
    if not always:
        return None
    expected = _of(first, last, "crossroads_chosen_cost_usd", best)
    return {
        "best_model": best,
        "calls": _of(first, last, "crossroads_compared_calls", best),
        "always_best_usd": always,
        "expected_usd": expected,
        "saved_usd": always - expected,
        "billed_usd": _of(first, last, "crossroads_compared_cost_usd", best),
    }


def _of(before: Snapshot, after: Snapshot, name: str, model: str | None) -> float:
    return _by_label(before, after, name, 0).get(model or "", 0.0)


def _models(first: Snapshot, last: Snapshot) -> dict[str, dict[str, Any]]:
    requests = _by_label(first, last, "crossroads_requests", 2)
    cost = _by_label(first, last, "crossroads_cost_usd", 1)
    return {
        model or UNANSWERED: {
            "requests": count,
            "cost_usd": cost.get(model, 0.0),
            "p50_s": _latency(first, last, 0.5, model) if model else None,
            "p95_s": _latency(first, last, 0.95, model) if model else None,
        }
        for model, count in sorted(requests.items(), key=lambda item: -item[1])
        if count
    }


def _phases(first: Snapshot, last: Snapshot) -> dict[str, float]:
    """Return each phase's mean, in milliseconds."""
    found = {}
    for phase in PHASES:
        now = last.histograms.get(("crossroads_phase_seconds", (phase,)))
        if now is None:
            continue
        then = first.histograms.get(("crossroads_phase_seconds", (phase,)), [0.0] * len(now))
        calls = sum(now[:-1]) - sum(then[:-1])
        found[phase] = 1e3 * (now[-1] - then[-1]) / calls if calls else 0.0
    return found
