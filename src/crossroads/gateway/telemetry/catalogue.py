"""Every metric the gateway has: name, meaning, labels, and how workers add up.

Names and buckets follow OpenTelemetry's gen_ai conventions where those have the metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of Prometheus' text format

Kind = Literal["counter", "histogram", "gauge"]

# Bounds in seconds; the first two as the gen_ai conventions advise.
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PHASE = (
    *(5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
TOKENS = tuple(4.0**i for i in range(14))


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``merge``: how a gauge's values of several workers become one."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    merge: Literal["sum", "max"] = "sum"


_OPERATION = ("gen_ai_operation_name", "gen_ai_response_model")

METRICS: dict[str, Metric] = {
    "gen_ai_client_operation_duration_seconds": Metric(
        "histogram", "Time from a request's head to the end of its answer.", _OPERATION, DURATION
    ),
    "gen_ai_client_operation_time_to_first_chunk_seconds": Metric(
        "histogram", "Time to the first event of a stream.", _OPERATION, FIRST
    ),
    "gen_ai_client_token_usage": Metric(
        "histogram", "Tokens of a call.", (*_OPERATION, "gen_ai_token_type"), TOKENS
    ),
    "crossroads_requests": Metric(
        "counter", "Calls that are over.", ("dialect", "policy", "model", "status")
    ),
    "crossroads_incomplete": Metric(
        "counter", "Calls answered with 200 whose answer did not get through whole.", ("model",)
    ),
    "crossroads_cost_usd": Metric("counter", "Money spent on upstreams.", ("policy", "model")),
    "crossroads_saved_usd": Metric("counter", "Money saved by caches.", ("policy", "model")),
    "crossroads_phase_seconds": Metric("histogram", "Time of a call by phase.", ("phase",), PHASE),
    "crossroads_attempts": Metric("counter", "Tries at models.", ("model", "status")),
    "crossroads_fallbacks": Metric(
        "counter", "Calls answered by another model than chosen, by the one chosen.", ("model",)
    ),
    "crossroads_explored": Metric("counter", "Calls whose model chance chose.", ("policy",)),
    "crossroads_cache": Metric("counter", "Calls by what the cache said.", ("result",)),
    "crossroads_refused": Metric(
        "counter", "Requests refused before they became a call: no key, no JSON, ...", ("status",)
    ),
    "crossroads_limited": Metric("counter", "Calls refused with 429.", ("reason",)),
    "crossroads_degraded_calls": Metric(
        "counter", "Calls decided by a declared fallback.", ("reason",)
    ),
    "crossroads_key_requests": Metric("counter", "Calls by key.", ("key",)),
    "crossroads_key_cost_usd": Metric("counter", "Money spent by key.", ("key",)),
    "crossroads_key_tokens": Metric("counter", "Tokens by key.", ("key", "type")),
    "crossroads_scored_calls": Metric("counter", "Calls with estimates of quality and cost."),
    "crossroads_scored_cost_usd": Metric("counter", "Money those calls cost."),
    "crossroads_estimated_quality": Metric(
        "counter", "Sum over those calls of the quality estimated for a model.", ("model",)
    ),
    "crossroads_compared_calls": Metric(
        "counter", "Calls with a cost estimated for a model and for the one chosen.", ("model",)
    ),
    "crossroads_estimated_cost_usd": Metric(
        "counter", "Sum over those calls of the cost estimated for a model.", ("model",)
    ),
    "crossroads_chosen_cost_usd": Metric(
        "counter", "Sum over those calls of the cost estimated for the one chosen.", ("model",)
    ),
    "crossroads_compared_cost_usd": Metric("counter", "Money those calls cost.", ("model",)),
    "crossroads_log_dropped": Metric("counter", "Log lines lost to a full queue or a bad file."),
    "crossroads_cpu_seconds": Metric("counter", "CPU time of the workers, user and system."),
    "crossroads_loop_lag_seconds": Metric(
        "histogram", "How late the event loop ran a timer.", (), PHASE
    ),
    "crossroads_in_flight": Metric("gauge", "Calls begun and not over."),
    "crossroads_resident_bytes": Metric("gauge", "Resident memory of the workers."),
    "crossroads_workers": Metric("gauge", "Workers that report."),
    "crossroads_breaker_state": Metric(
        "gauge", "Circuit breaker: 0 closed, 1 half-open, 2 open.", ("model",), merge="max"
    ),
    "crossroads_upstream_in_flight": Metric("gauge", "Calls running at a model.", ("model",)),
    "crossroads_ledger_queue": Metric("gauge", "Ledger rows not yet stored."),
    "crossroads_degraded": Metric(
        "gauge", "1 where a part of the gateway is degraded, 2 failing.", ("part",), merge="max"
    ),
}
