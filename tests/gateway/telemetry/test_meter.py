from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.gateway.telemetry.catalogue import METRICS
from crossroads.gateway.telemetry.meter import Meter
from tests.gateway.telemetry.records import record


def counter(meter: Meter, name: str, *labels: str) -> float:
    return meter.snapshot().counters.get((name, labels), 0.0)


def test_a_call_counts_requests_tokens_cost_phases_and_attempts() -> None:
    meter = Meter(["a", "auto"])
    meter.observe(record(first_token_ms=80.0))
    found = meter.snapshot()
    assert found.counters["crossroads_requests", ("chat", "auto", "a", "200")] == 1
    assert found.counters["crossroads_cost_usd", ("auto", "a")] == pytest.approx(0.002)
    assert found.counters["crossroads_attempts", ("a", "200")] == 1
    assert found.counters["crossroads_key_tokens", ("team-key", "output")] == 30
    duration = found.histograms["gen_ai_client_operation_duration_seconds", ("chat", "a")]
    assert sum(duration[:-1]) == 1 and duration[-1] == pytest.approx(0.50122)
    first = found.histograms["gen_ai_client_operation_time_to_first_chunk_seconds", ("chat", "a")]
    assert first[-1] == pytest.approx(0.08)
    tokens = found.histograms["gen_ai_client_token_usage", ("chat", "a", "input")]
    assert tokens[-1] == 100
    for phase, seconds in (("queue", 2e-5), ("route", 1e-4), ("connect", 1e-3), ("upstream", 0.5)):
        assert found.histograms["crossroads_phase_seconds", (phase,)][-1] == pytest.approx(seconds)


def test_a_fallback_counts_for_the_model_given_up() -> None:
    meter = Meter(["a", "b", "auto"])
    meter.observe(record(model="b", attempts=[("a", 503, "overloaded", 0.1), ("b", 200, "", 1.0)]))
    assert counter(meter, "crossroads_fallbacks", "a") == 1
    assert counter(meter, "crossroads_attempts", "a", "503") == 1


def test_refusals_cuts_cache_hits_exploration_and_degraded_decisions_are_counted() -> None:
    meter = Meter(["a", "auto"])
    meter.observe(record(status=429, error="insufficient_quota", model="", is_complete=False))
    meter.observe(record(is_complete=False))
    meter.observe(record(cache="exact", saved_usd=0.5))
    meter.observe(record(is_explored=True, labels={"degraded": "route-budget"}))
    assert counter(meter, "crossroads_limited", "insufficient_quota") == 1
    assert counter(meter, "crossroads_incomplete", "a") == 1
    assert counter(meter, "crossroads_cache", "exact") == 1
    assert counter(meter, "crossroads_saved_usd", "auto", "a") == 0.5
    assert counter(meter, "crossroads_explored", "auto") == 1
    assert counter(meter, "crossroads_degraded_calls", "route-budget") == 1


def test_names_that_clients_make_up_share_one_series() -> None:
    meter = Meter(["a", "auto"], max_keys=3)
    for i in range(10_000):
        meter.observe(
            record(model=f"m{i}", policy=f"p{i}", key_id=f"k{i}", status=i, dialect=f"d{i}",
                   chosen=f"c{i}", attempts=[(f"m{i}", i, "", 0.1)], scores={f"s{i}": 0.5},
                   costs={f"s{i}": 0.5})
        )  # fmt: skip
    found = meter.snapshot()
    names = [name for name, _ in found.counters]
    assert names.count("crossroads_requests") < 60  # by the known statuses only
    assert names.count("crossroads_key_requests") == 4
    assert found.total("crossroads_requests") == 10_000
    assert found.total("crossroads_attempts") == 10_000
    assert len(meter._aliases) <= 4_000


def test_without_names_the_first_models_seen_have_series_of_their_own() -> None:
    meter = Meter(max_models=3)
    for name in ("a", "b", "c", "d"):
        meter.observe(record(model=name, chosen=name, policy="a", attempts=[]))
    models = {key[1][2] for key in meter.snapshot().counters if key[0] == "crossroads_requests"}
    assert models == {"a", "b", "c", "other"}


def test_names_learnt_at_a_reload_leave_other() -> None:
    meter = Meter(["a", "auto"])
    meter.observe(record(model="new"))
    meter.know(["new"])
    meter.observe(record(model="new"))
    assert counter(meter, "crossroads_requests", "chat", "auto", "other", "200") == 1
    assert counter(meter, "crossroads_requests", "chat", "auto", "new", "200") == 1


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "zzz"]),
            st.sampled_from([200, 429, 502, 777]),
            st.floats(0, 1e7),
            st.integers(0, 10**9),
        ),
        max_size=30,
    )
)
def test_every_call_is_in_every_total_exactly_once(
    calls: list[tuple[str, int, float, int]],
) -> None:
    meter = Meter(["a", "b", "auto"])
    for model, status, milliseconds, tokens in calls:
        meter.observe(
            record(model=model, status=status, total_ms=milliseconds, input_tokens=tokens)
        )
    found = meter.snapshot()
    assert found.total("crossroads_requests") == len(calls)
    assert found.total("crossroads_key_requests") == len(calls)
    durations = [
        counts
        for (name, _), counts in found.histograms.items()
        if name == "gen_ai_client_operation_duration_seconds"
    ]
    assert sum(sum(counts[:-1]) for counts in durations) == len(calls)
    whole = sum(ms for _, _, ms, _ in calls) / 1e3
    assert sum(counts[-1] for counts in durations) == pytest.approx(whole)


def test_estimates_of_a_policy_are_counted_by_model_whichever_models_a_call_could_have() -> None:
    costs = {"a": 1.0, "b": 2.0, "c": 3.0}
    meter = Meter(["a", "b", "c", "auto"])
    meter.observe(record(costs=costs, scores={"a": 0.5, "b": 0.25}))
    meter.observe(record(costs=costs, scores={"c": 0.75, "a": 0.125}))
    meter.observe(record(costs=costs, scores={"a": 0.0625, "b": 0.5}))
    found = [counter(meter, "crossroads_estimated_quality", model) for model in "abc"]
    assert found == [0.6875, 0.75, 0.75]
    assert [counter(meter, "crossroads_compared_calls", model) for model in "abc"] == [3, 2, 1]


def test_a_price_nobody_knows_spoils_no_sum() -> None:
    meter = Meter(["a", "b", "auto"])
    meter.observe(record(scores={"a": 0.5, "b": 0.9}, costs={"a": 0.1, "b": math.nan}))
    meter.observe(
        record(scores={"a": 0.5, "b": 0.9}, costs={"a": math.inf, "b": 0.2}, chosen="b", model="b")
    )
    meter.observe(record(scores={"a": 0.5, "b": 0.9}, costs={"a": math.inf, "b": 0.4}))  # nor this
    meter.observe(record(scores={"a": 0.5, "b": 0.9}))  # no costs: not part of the comparison
    assert counter(meter, "crossroads_estimated_cost_usd", "a") == pytest.approx(0.1)
    assert counter(meter, "crossroads_estimated_cost_usd", "b") == pytest.approx(0.2)
    assert counter(meter, "crossroads_scored_calls") == 3
    assert counter(meter, "crossroads_compared_calls", "b") == 1


def test_every_series_is_in_the_catalogue_with_its_labels() -> None:
    meter = Meter(["a", "auto"])
    meter.observe(record(scores={"a": 0.5}, costs={"a": 0.1}, cache="exact", is_explored=True))
    meter.observe_lag(3.0)
    found = meter.snapshot()
    for kind, values in (
        ("counter", found.counters),
        ("histogram", found.histograms),
        ("gauge", found.gauges),
    ):
        for name, labels in values:
            assert METRICS[name].kind == kind
            assert len(labels) == len(METRICS[name].labels)
    for (name, _), counts in found.histograms.items():
        assert len(counts) == len(METRICS[name].bounds) + 2


def test_records_wait_to_be_counted_but_never_many_of_them() -> None:
    meter = Meter(["a", "auto"])
    for _ in range(1_000):
        meter.observe(record())
        assert len(meter._waiting) < 128
    assert meter.snapshot().total("crossroads_requests") == 1_000
    assert meter.snapshot().total("crossroads_requests") == 1_000
