"""Counts the calls of one worker; a call costs a few microseconds.

The counts are plain lists and slotted objects that only the event loop's thread changes. Records
wait for a moment and are counted many at a time: that loop is short enough to stay in the
processor's caches, which a whole call is not. The counts become metric families of
prometheus-client when somebody asks for them (`exposition`), in another thread.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from crossroads.gateway.contracts import Record
from crossroads.gateway.telemetry.catalogue import DURATION, FIRST, PHASE, TOKENS
from crossroads.gateway.telemetry.snapshot import Snapshot

logger = logging.getLogger(__name__)

OTHER = "other"
PHASES = ("queue", "route", "connect", "upstream", "relay")
OPERATIONS = {
    "chat": "chat",
    "completions": "text_completion",
    "responses": "chat",
    "messages": "chat",
    "embeddings": "embeddings",
}
_ESTIMATES = (  # sums by model; all but the first over calls whose costs can be compared
    *("crossroads_estimated_quality", "crossroads_compared_calls"),
    *("crossroads_estimated_cost_usd", "crossroads_chosen_cost_usd"),
    "crossroads_compared_cost_usd",
)
_AT_ONCE = 128  # records
_MOST_SERIES = 4_000  # of one metric; a bound on memory whatever clients and upstreams do

# Records count in milliseconds.
_DURATION_MS = [1e3 * bound for bound in DURATION]
_FIRST_MS = [1e3 * bound for bound in FIRST]
_PHASE_MS = [1e3 * bound for bound in PHASE]
_TOKENS = list(TOKENS)


def _histogram(bounds: list[float]) -> list[float]:
    return [0.0] * (len(bounds) + 2)  # one past the last bound, and the sum


class _Times:
    """Histograms of one operation and model."""

    __slots__ = ("first", "input", "output", "total")

    def __init__(self) -> None:
        self.total = _histogram(_DURATION_MS)
        self.first = _histogram(_FIRST_MS)
        self.input = _histogram(_TOKENS)
        self.output = _histogram(_TOKENS)


class _Series:
    """Counters of one dialect, policy, model and status."""

    __slots__ = ("cost", "incomplete", "requests", "saved", "times")

    def __init__(self, times: _Times) -> None:
        self.requests = 0
        self.incomplete = 0
        self.cost = 0.0
        self.saved = 0.0
        self.times = times


class Meter:
    """Counts records.

    Parameters
    ----------
    names : models and policies there are; others count as ``other``. Empty: the first
        ``max_models`` names seen have series of their own.
    max_keys : keys with series of their own; what comes later counts as ``other``
    """

    def __init__(
        self, names: Iterable[str] = (), *, max_models: int = 200, max_keys: int = 200
    ) -> None:
        self.in_flight = 0
        self.log_dropped = 0
        self._waiting: list[Record] = []
        self._names = set(names)
        self._is_closed = bool(self._names)  # else the first names seen are taken
        self._max_models = max_models
        self._max_keys = max_keys
        self._series: dict[tuple[str, str, str, int], _Series] = {}
        self._aliases: dict[tuple[str, str, str, int], _Series] = {}
        self._times: dict[tuple[str, str], _Times] = {}
        self._phases = [_histogram(_PHASE_MS) for _ in PHASES]
        self._lag = _histogram(_PHASE_MS)
        self._attempts: dict[tuple[str, int], int] = {}
        self._counts: dict[tuple[str, str], int] = {}  # by metric and its only label
        self._keys: dict[str, list[float]] = {}  # calls, USD, tokens in and out
        self._estimates: dict[str, list[float]] = {}  # see _observe_estimates
        self._scored = [0, 0.0]  # calls, USD

    def know(self, names: Iterable[str]) -> None:
        """Give more names series of their own, as after a reload."""
        self._count_waiting()
        self._names.update(names)
        self._aliases.clear()

    def observe(self, record: Record) -> None:
        """Count one call, by the next `snapshot` at the latest."""
        self._waiting.append(record)
        if len(self._waiting) >= _AT_ONCE:
            self._count_waiting()

    def _count_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        alike: dict[tuple[int, tuple[str, ...]], list[Record]] = {}
        for record in waiting:
            try:
                self._count_call(record)
                if record.scores and record.costs:
                    alike.setdefault((id(record.costs), tuple(record.scores)), []).append(record)
            except Exception:
                # A record nobody foresaw must not cost the others their place.
                logger.exception("call %s was not counted", record.decision_id)
        for records in alike.values():
            try:
                self._observe_estimates(records)
            except Exception:
                logger.exception("estimates of %d calls were not counted", len(records))

    def _count_call(self, record: Record) -> None:
        given = (record.dialect, record.policy, record.model, record.status)
        series = self._aliases.get(given)
        if series is None:
            series = self._find(given)
        series.requests += 1
        series.cost += record.cost_usd
        if record.saved_usd:
            series.saved += record.saved_usd
        times = series.times
        value = record.total_ms
        times.total[bisect_left(_DURATION_MS, value)] += 1
        times.total[-1] += value
        first = record.first_token_ms
        if first is not None:
            times.first[bisect_left(_FIRST_MS, first)] += 1
            times.first[-1] += first
        tokens_in, tokens_out = record.input_tokens, record.output_tokens
        if tokens_in or tokens_out:
            times.input[bisect_left(_TOKENS, tokens_in)] += 1
            times.input[-1] += tokens_in
            times.output[bisect_left(_TOKENS, tokens_out)] += 1
            times.output[-1] += tokens_out
        queue, route, connect, upstream, relay = self._phases
        _add_phase(queue, record.queue_ms)
        _add_phase(route, record.route_ms)
        _add_phase(connect, record.connect_ms)
        _add_phase(upstream, record.upstream_ms)
        _add_phase(relay, record.relay_ms)
        self._observe_key(record)
        for model, status, _, _ in record.attempts:
            tried = (model, status)
            if tried in self._attempts:
                self._attempts[tried] += 1
            else:
                self._count_first_attempt(model, status)
        is_routine = record.status == 200 and record.is_complete and record.model == record.chosen
        if not is_routine or record.cache or record.is_explored or record.labels:
            self._observe_unusual(record, series)

    def observe_lag(self, milliseconds: float) -> None:
        """Count how late the event loop was."""
        _add_phase(self._lag, milliseconds)

    def _observe_key(self, record: Record) -> None:
        key = self._keys.get(record.key_id)
        if key is None:
            name = record.key_id if len(self._keys) < self._max_keys else OTHER
            key = self._keys.setdefault(name, [0, 0.0, 0, 0])
        key[0] += 1
        key[1] += record.cost_usd
        key[2] += record.input_tokens
        key[3] += record.output_tokens

    def _observe_estimates(self, records: Sequence[Record]) -> None:
        """Count what was expected of every model, for calls of one policy: with the same costs."""
        self._scored[0] += len(records)
        self._scored[1] += sum(record.cost_usd for record in records)
        costs = records[0].costs
        priced = [record for record in records if costs.get(record.chosen, math.inf) < math.inf]
        chosen_usd = sum(costs[record.chosen] for record in priced)
        paid_usd = sum(record.cost_usd for record in priced)
        columns = zip(*[record.scores.values() for record in records], strict=True)
        for model, quality in zip(records[0].scores, columns, strict=True):
            sums = self._estimates.get(model)
            if sums is None:
                sums = self._estimates.setdefault(self._known(model), [0.0] * len(_ESTIMATES))
            sums[0] += sum(quality)
            usd = costs.get(model, math.inf)
            if usd < math.inf:  # an unknown price is neither
                sums[1] += len(priced)
                sums[2] += usd * len(priced)
                sums[3] += chosen_usd
                sums[4] += paid_usd

    def _observe_unusual(self, record: Record, series: _Series) -> None:
        if record.status == 429:
            self._count("crossroads_limited", record.error or "unnamed")
        elif record.status == 200 and not record.is_complete:
            series.incomplete += 1
        if record.cache:
            self._count("crossroads_cache", record.cache)
        elif record.model and record.chosen and record.model != record.chosen:
            self._count("crossroads_fallbacks", self._known(record.chosen))
        if record.is_explored:
            self._count("crossroads_explored", self._known(record.policy))
        degraded = record.labels.get("degraded")
        if degraded:
            self._count("crossroads_degraded_calls", degraded)

    def _count_first_attempt(self, model: str, status: int) -> None:
        name = (self._known(model), status if status in _STATUSES else 0)
        self._attempts[name] = self._attempts.get(name, 0) + 1

    def _count(self, metric: str, label: str) -> None:
        key = (metric, label)
        if key not in self._counts and len(self._counts) >= _MOST_SERIES:
            key = (metric, OTHER)
        self._counts[key] = self._counts.get(key, 0) + 1

    def _known(self, name: str) -> str:
        if not name or name in self._names:
            return name
        if self._is_closed or len(self._names) >= self._max_models:
            return OTHER
        self._names.add(name)
        return name

    def _find(self, given: tuple[str, str, str, int]) -> _Series:
        """Return the series of what may be an unknown model, policy or status."""
        dialect, policy, model, status = given
        dialect = dialect if dialect in OPERATIONS else OTHER
        policy, model = self._known(policy.partition(":")[0]), self._known(model)
        status = status if status in _STATUSES else 0
        if len(self._series) >= _MOST_SERIES:
            policy, model = OTHER, OTHER
        name = (dialect, policy, model, status)
        series = self._series.get(name)
        if series is None:
            times = self._times.setdefault((OPERATIONS.get(dialect, OTHER), model), _Times())
            series = self._series[name] = _Series(times)
        if len(self._aliases) < _MOST_SERIES:  # names that clients make up are not remembered
            self._aliases[given] = series
        return series

    def snapshot(self) -> Snapshot:
        """Return everything counted so far; to be called where `observe` is."""
        self._count_waiting()
        whole = Snapshot()
        counters, histograms = whole.counters, whole.histograms
        for (dialect, policy, model, status), series in self._series.items():
            counters["crossroads_requests", (dialect, policy, model, str(status))] = series.requests
            _add(whole, "crossroads_cost_usd", (policy, model), series.cost)
            _add(whole, "crossroads_saved_usd", (policy, model), series.saved)
            _add(whole, "crossroads_incomplete", (model,), series.incomplete)
        for names, times in self._times.items():
            prefix = "gen_ai_client_operation"
            histograms[f"{prefix}_duration_seconds", names] = _seconds(times.total)
            histograms[f"{prefix}_time_to_first_chunk_seconds", names] = _seconds(times.first)
            histograms["gen_ai_client_token_usage", (*names, "input")] = list(times.input)
            histograms["gen_ai_client_token_usage", (*names, "output")] = list(times.output)
        for phase, counts in zip(PHASES, self._phases, strict=True):
            histograms["crossroads_phase_seconds", (phase,)] = _seconds(counts)
        histograms["crossroads_loop_lag_seconds", ()] = _seconds(self._lag)
        for (model, status), count in self._attempts.items():
            counters["crossroads_attempts", (model, str(status))] = count
        for (metric, label), count in self._counts.items():
            counters[metric, (label,)] = count
        for key, (calls, usd, tokens_in, tokens_out) in self._keys.items():
            counters["crossroads_key_requests", (key,)] = calls
            counters["crossroads_key_cost_usd", (key,)] = usd
            counters["crossroads_key_tokens", (key, "input")] = tokens_in
            counters["crossroads_key_tokens", (key, "output")] = tokens_out
        for model, sums in self._estimates.items():
            for metric, value in zip(_ESTIMATES, sums, strict=True):
                counters[metric, (model,)] = value
        counters["crossroads_scored_calls", ()] = self._scored[0]
        counters["crossroads_scored_cost_usd", ()] = self._scored[1]
        counters["crossroads_log_dropped", ()] = self.log_dropped
        whole.gauges["crossroads_in_flight", ()] = self.in_flight
        return whole


def _add_phase(counts: list[float], milliseconds: float) -> None:
    counts[bisect_left(_PHASE_MS, milliseconds)] += 1
    counts[-1] += milliseconds


def _add(whole: Snapshot, name: str, labels: tuple[str, ...], value: float) -> None:
    whole.counters[name, labels] = whole.counters.get((name, labels), 0.0) + value


def _seconds(counts: list[float]) -> list[float]:
    return [*counts[:-1], counts[-1] / 1e3]


# Statuses with series of their own; others count as 0, whatever an upstream makes up.
_STATUSES = frozenset(
    {0, 200, 201, 204, 301, 302, 307, 308, 400, 401, 402, 403, 404, 405, 408, 409, 410, 411, 413}
    | {414, 415, 422, 424, 425, 429, 431, 499, 500, 501, 502, 503, 504, 520, 522, 524, 529}
)
