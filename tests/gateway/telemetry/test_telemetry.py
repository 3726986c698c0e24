from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from crossroads.core.errors import UsageError
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Telemetry
from crossroads.gateway.telemetry import (
    GatewayTelemetry,
    LogSettings,
    Reading,
    TelemetrySettings,
    compose_health,
    engine_source,
    health_source,
)
from crossroads.gateway.telemetry.lag import LagProbe
from tests.gateway.telemetry.records import record

QUIET = TelemetrySettings(logs=None)


def call() -> Call:
    return Call(dialect="chat", model="auto", body={})


def test_it_keeps_the_contract() -> None:
    telemetry: Telemetry = GatewayTelemetry(QUIET)
    telemetry.begin(call())
    telemetry.end(record())


def test_calls_in_flight_are_those_begun_and_not_over() -> None:
    telemetry = GatewayTelemetry(QUIET)
    for _ in range(3):
        telemetry.begin(call())
    telemetry.end(record())
    assert telemetry.snapshot().gauges["crossroads_in_flight", ()] == 2
    assert [r.decision_id for r in telemetry.recent] == ["dec_1"]


def test_a_record_that_makes_no_sense_is_logged_and_not_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    telemetry = GatewayTelemetry(QUIET)
    broken: Any = record(total_ms="slow")
    telemetry.end(broken)
    telemetry.end(record())
    found = telemetry.snapshot()
    assert "was not counted" in caplog.text
    assert found.counters["crossroads_key_requests", ("team-key",)] == 1


def test_other_parts_figures_are_read_with_the_snapshot() -> None:
    telemetry = GatewayTelemetry(QUIET)
    health = {"a": {"state": "open", "in_flight": 4}, "b": {"state": "half-open"}}
    telemetry.watch(engine_source(lambda: health))
    telemetry.watch(
        health_source(lambda: compose_health({"ledger": lambda: {"status": "failing"}}))
    )
    telemetry.watch(lambda: [Reading("crossroads_ledger_queue", 7)])
    gauges = telemetry.snapshot().gauges
    assert gauges["crossroads_breaker_state", ("a",)] == 2
    assert gauges["crossroads_breaker_state", ("b",)] == 1
    assert gauges["crossroads_upstream_in_flight", ("a",)] == 4
    assert gauges["crossroads_degraded", ("ledger",)] == 2
    assert gauges["crossroads_ledger_queue", ()] == 7


def test_a_source_that_breaks_leaves_the_others_and_shows_in_the_health() -> None:
    def broken() -> Iterator[Reading]:
        yield Reading("crossroads_ledger_queue", 1)
        raise RuntimeError("gone")

    telemetry = GatewayTelemetry(QUIET)
    telemetry.watch(broken)
    telemetry.watch(lambda: [Reading("crossroads_upstream_in_flight", 2, ("a",))])
    assert telemetry.snapshot().gauges["crossroads_upstream_in_flight", ("a",)] == 2
    assert telemetry.health()["reason"] == "RuntimeError: gone"


def test_a_reading_must_be_in_the_catalogue() -> None:
    with pytest.raises(UsageError, match="did you mean 'crossroads_ledger_queue'"):
        Reading("crossroads_ledger_queu", 1)


def test_rendering_runs_in_another_thread_than_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from crossroads.gateway.telemetry import exposition

    threads = []
    render = exposition.render

    def noting(snapshot: Any) -> bytes:
        threads.append(threading.current_thread())
        return render(snapshot)

    monkeypatch.setattr(exposition, "render", noting)
    text = asyncio.run(GatewayTelemetry(QUIET).render())
    assert b"crossroads_build_info" in text
    assert threads[0] is not threading.main_thread()


def test_from_start_to_close_calls_and_warnings_reach_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    async def run() -> None:
        telemetry = GatewayTelemetry(TelemetrySettings(logs=LogSettings(file=str(path))))
        await telemetry.start()
        telemetry.end(record())
        logging.getLogger("crossroads.gateway.somewhere").warning("something is odd")
        await telemetry.close()

    asyncio.run(run())
    events = [orjson.loads(text)["event"] for text in path.read_bytes().splitlines()]
    assert events == ["call", "log"]


def test_the_probe_sees_a_loop_that_was_blocked() -> None:
    seen: list[float] = []

    async def run() -> float:
        probe = LagProbe(seen.append, period=0.005)
        probe.start()
        await asyncio.sleep(0.012)
        time.sleep(0.05)
        await asyncio.sleep(0.002)
        probe.stop()
        return probe.worst_ms

    assert asyncio.run(run()) >= 30  # of the 50 blocked, a period at most is not late
    assert max(seen) >= 30


def test_health_is_as_bad_as_its_worst_part() -> None:
    good, odd = (lambda: {"status": "ok"}), (lambda: {"queue": 3})
    assert compose_health({})["status"] == "ok"
    assert compose_health({"a": good, "b": odd})["status"] == "ok"
    assert compose_health({"a": good, "b": lambda: {"state": "degraded"}})["status"] == "degraded"
    worst = compose_health({"a": lambda: {"status": "failing"}, "b": good})
    assert worst["status"] == "failing" and worst["parts"]["b"] == {"status": "ok"}


def test_a_check_that_raises_or_says_nonsense_is_a_finding() -> None:
    def broken() -> dict[str, Any]:
        raise KeyError("x")

    found = compose_health({"a": broken, "b": lambda: {"status": "fine"}})
    assert found["parts"]["a"]["reason"] == "its check raised KeyError"
    assert found["parts"]["b"]["status"] == "degraded"
