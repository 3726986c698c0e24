from __future__ import annotations

import random

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.telemetry.catalogue import DURATION
from crossroads.gateway.telemetry.exposition import render
from crossroads.gateway.telemetry.meter import Meter
from crossroads.gateway.telemetry.snapshot import Snapshot, merge, quantile
from tests.gateway.telemetry.records import record


def counted(n: int, *, seed: int) -> Snapshot:
    chance = random.Random(seed)
    meter = Meter(["a", "b", "auto"])
    for _ in range(n):
        meter.in_flight += 1
        meter.observe(record(model=chance.choice("ab"), total_ms=chance.expovariate(1e-3)))
    return meter.snapshot()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_the_sum_over_workers_is_what_one_worker_would_have_counted(sizes: list[int]) -> None:
    parts = [counted(n, seed=i) for i, n in enumerate(sizes)]
    whole = merge(parts)
    assert whole.total("crossroads_requests") == sum(sizes)
    assert whole.gauges["crossroads_in_flight", ()] == sum(sizes)
    assert merge(reversed(parts)).counters == pytest.approx(whole.counters)


def test_states_merge_to_the_worst() -> None:
    key = ("crossroads_breaker_state", ("a",))
    whole = merge([Snapshot(gauges={key: 0.0}), Snapshot(gauges={key: 2.0})])
    assert whole.gauges[key] == 2.0


def test_it_survives_json_and_leaves_out_what_another_version_had() -> None:
    before = counted(5, seed=1)
    data = orjson.loads(orjson.dumps(before.to_dict()))
    data["counters"].append(["crossroads_of_tomorrow", [], 1])
    data["counters"].append(["crossroads_requests", ["too few"], 1])
    after = Snapshot.from_dict(data)
    assert after == before


def test_a_quantile_is_within_its_bucket_of_the_true_one() -> None:
    chance = np.random.default_rng(3)
    values = chance.lognormal(0, 1.2, 5_000)
    counts = [*np.bincount(np.searchsorted(DURATION, values), minlength=15).tolist(), 0.0]
    for q in (0.05, 0.5, 0.95):
        true, found = float(np.quantile(values, q)), quantile(counts, DURATION, q)
        assert found is not None
        assert np.searchsorted(DURATION, true) == np.searchsorted(DURATION, found)


def test_a_quantile_of_nothing_is_none_and_beyond_the_last_bound_is_the_last_bound() -> None:
    assert quantile([0.0] * 16, DURATION, 0.5) is None
    assert quantile([*[0.0] * 14, 3.0, 999.0], DURATION, 0.5) == DURATION[-1]


def test_prometheus_reads_what_is_rendered() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    text = render(counted(7, seed=2)).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = families["crossroads_requests"].samples
    assert sum(sample.value for sample in samples) == 7
    duration = families["gen_ai_client_operation_duration_seconds"].samples
    last = [s.value for s in duration if s.labels.get("le") == "+Inf"]
    assert sum(last) == 7
    assert sum(s.value for s in duration if s.name.endswith("_count")) == 7


def test_hostile_label_values_stay_inside_their_quotes() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    name = 'a"} 1\nevil_metric{x="\\'
    meter = Meter([name, "auto"])
    meter.observe(record(model=name, chosen=name, attempts=[]))
    families = list(text_string_to_metric_families(render(meter.snapshot()).decode()))
    assert "evil_metric" not in {family.name for family in families}
    labels = [s.labels for f in families if f.name == "crossroads_requests" for s in f.samples]
    assert labels[0]["model"] == name
