from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crossroads.gateway.telemetry import GatewayTelemetry, History, Snapshot, TelemetrySettings
from tests.gateway.telemetry.records import record


class Run:
    """A history whose clock and calls a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.telemetry = GatewayTelemetry(TelemetrySettings(logs=None))
        self.history = History(self.telemetry.figures, step=5.0, clock=lambda: self.now)

    def step(self, *records: Any, seconds: float = 5.0) -> None:
        for one in records:
            self.telemetry.end(one)
        self.now += seconds
        asyncio.run(self.history.sample())

    def series(self, seconds: float = 900.0) -> dict[str, Any]:
        return asyncio.run(self.history.series(seconds))


def test_nothing_sampled_is_an_empty_series() -> None:
    assert Run().series()["times"] == []


def test_rates_costs_and_failures_are_changes_between_samples() -> None:
    run = Run()
    run.step()
    run.step(record(), record(model="b", chosen="b"), record(model="", status=502, cost_usd=0.0))
    run.step(record())
    found = run.series()
    assert found["times"] == [1010.0, 1015.0]
    assert found["requests_per_s"]["a"] == pytest.approx([0.2, 0.2])
    assert found["requests_per_s"]["b"] == pytest.approx([0.2, 0.0])
    assert found["failed_per_s"] == pytest.approx([0.2, 0.0])
    assert found["totals"]["requests"] == 4
    assert found["totals"]["cost_usd"] == pytest.approx(0.006)
    assert found["models"]["a"]["requests"] == 2
    assert found["models"]["unanswered"]["p50_s"] is None
    assert found["phases"]["route"] == pytest.approx(0.1)


def test_what_a_client_got_wrong_is_refused_and_nothing_failed() -> None:
    run = Run()
    run.step()
    refused = [record(model="", status=status, cost_usd=0.0) for status in (400, 404, 429, 499)]
    run.step(*refused, record(model="", status=503, cost_usd=0.0), record())
    found = run.series()
    assert (found["totals"]["refused"], found["totals"]["failed"]) == (4, 1)
    assert found["failed_per_s"] == pytest.approx([0.2])


def test_a_shorter_period_leaves_older_calls_out() -> None:
    run = Run()
    run.step()
    run.step(record(), record())
    run.step(seconds=100.0)
    run.step(record())
    assert run.series(4.0)["totals"]["requests"] == 1
    assert run.series(900.0)["totals"]["requests"] == 3


def test_many_samples_become_at_most_so_many_points_and_no_call_is_lost() -> None:
    run = Run()
    for _ in range(500):
        run.step(record())
    found = run.series(10_000.0)
    assert len(found["times"]) <= 120
    assert sum(found["cost_usd"]) == pytest.approx(found["totals"]["cost_usd"])
    assert found["totals"]["requests"] >= 495  # the oldest few may be left out to be even


def test_saving_compares_with_the_model_of_the_best_estimates() -> None:
    run = Run()
    run.step()
    scores, costs = {"a": 0.6, "big": 0.9}, {"a": 0.001, "big": 0.02}
    run.step(record(scores=scores, costs=costs), record(scores=scores, costs=costs), record())
    saved = run.series()["saved"]
    assert saved["best_model"] == "big" and saved["calls"] == 2
    assert saved["always_best_usd"] == pytest.approx(0.04)
    assert saved["expected_usd"] == pytest.approx(0.002)
    assert saved["saved_usd"] == pytest.approx(0.038)
    assert saved["billed_usd"] == pytest.approx(0.004)
    assert run.series()["always_best_usd"] == pytest.approx([0.04])
    assert run.series()["expected_usd"] == pytest.approx([0.002])


def test_who_always_chooses_the_best_model_saves_nothing_whatever_the_bills_are() -> None:
    run = Run()
    run.step()
    scores, costs = {"a": 0.6, "big": 0.9}, {"a": 0.001, "big": 0.02}
    run.step(
        *[record(scores=scores, costs=costs, chosen="big", model="big", cost_usd=0.0001)] * 5,
        record(scores={"c": 0.1}, costs={"c": 5.0}, chosen="c", model="c"),  # of another policy
    )
    saved = run.series()["saved"]
    assert saved["calls"] == 5
    assert saved["saved_usd"] == pytest.approx(0.0)
    assert saved["billed_usd"] == pytest.approx(0.0005)


def test_calls_without_estimates_save_nothing_that_is_known() -> None:
    run = Run()
    run.step()
    run.step(record())
    assert run.series()["saved"] is None


def test_a_worker_that_is_gone_with_its_last_second_makes_no_negative_rate() -> None:
    values = iter([10.0, 4.0, 6.0])

    async def figures() -> Snapshot:
        key = ("crossroads_requests", ("chat", "auto", "a", "200"))
        return Snapshot(counters={key: next(values)})

    run = Run()
    run.history = History(figures, clock=lambda: run.now)
    for _ in range(3):
        run.step()
    assert run.series()["requests_per_s"]["a"] == pytest.approx([0.0, 0.4])
