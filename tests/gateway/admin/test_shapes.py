from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest

from crossroads.gateway.admin.shapes import (
    budget_rows,
    frontier_view,
    health_of_all,
    key_rows,
    limit_texts,
    upstreams_of_all,
)
from crossroads.gateway.telemetry import Snapshot
from crossroads.gateway.telemetry.snapshot import merge

START, END = "2026-11-01T00:00:00+00:00", "2026-12-01T00:00:00+00:00"
HALF = datetime.fromisoformat("2026-11-16T00:00:00+00:00").timestamp()
BUDGET = {"per": "month", "usd": 10.0, "spent_usd": 4.0, "start": START, "reset_at": END}


def test_a_frontier_before_the_first_prompt_has_no_points_and_says_no_number() -> None:
    empty = {"quality": None, "usd": None, "shares": {}, "num_prompts": 0}
    told = {"points": [], "operating_point": empty, "measured": {}}
    told["models"] = [{"model": "a", "quality": None, "usd": 0.1}]
    found = frontier_view(told, operating=empty, preview=None)
    assert found["points"] == [] and found["models"] == []
    assert found["operating"] is None and found["measured"] is None
    assert found["source"] == "the router's estimates"


def test_costs_on_a_frontier_are_per_1000_calls() -> None:
    point = {"quality": 0.5, "usd": 0.002, "num_prompts": 3}
    measured = {"quality": 0.7, "cost_usd": 0.004, "best_single": "a"}
    told = {"points": [point, {"quality": 0.6, "usd": None}], "measured": measured}
    found = frontier_view(told, operating=point, preview={**point, "price": 4.0})
    assert [p["cost_usd"] for p in found["points"]] == [pytest.approx(2.0)]
    assert found["preview"] == {"price": 4.0, "quality": 0.5, "cost_usd": pytest.approx(2.0)}
    assert found["measured"] == {"quality": 0.7, "cost_usd": pytest.approx(4.0)}
    assert found["best_single"] is None  # its figures are missing


def test_a_policys_own_frontier_is_drawable() -> None:
    from crossroads.gateway.policies.frontier import Frontier

    class Estimate:
        quality = np.array([0.4, 0.9])

    class Fitted:
        models = ("cheap", "dear")
        mean_cost = np.array([0.001, 0.01])
        spend = None

        def __init__(self) -> None:
            self.metrics = {"quality": 0.8, "cost_usd": 0.005}

    from crossroads.prompts.decide import parse_rule

    frontier = Frontier(Fitted(), np.array([0, 1]))  # type: ignore[arg-type]
    frontier.seen([Estimate(), Estimate()])  # type: ignore[list-item]
    told = frontier.describe(parse_rule("tradeoff:1"))
    found = frontier_view(told, operating=told["operating_point"], preview=None)
    assert found["operating"]["quality"] == pytest.approx(0.9)
    assert found["operating"]["cost_usd"] == pytest.approx(10.0)
    assert found["operating"]["shares"] == {"cheap": 0.0, "dear": 1.0}
    assert {p["model"] for p in found["models"]} == {"cheap", "dear"}
    assert found["points"] and found["source"].startswith("the router's estimates of the last 2")


def test_budgets_of_teams_and_keys_are_one_list_with_their_share_of_time() -> None:
    paced = {**BUDGET, "pace": {"price": 2.5, "elapsed_share": 0.25}}
    told = {
        "teams": [{"name": "shop", "budgets": [paced]}],
        "keys": [{"name": "k", "budgets": [BUDGET]}, {"name": "free", "budgets": []}],
    }
    team, key = budget_rows(told, now=HALF)
    assert (team["name"], team["scope"], team["paced"]) == ("shop", "team", True)
    assert team["price"] == 2.5 and team["elapsed_share"] == 0.25
    assert (key["name"], key["scope"], key["paced"]) == ("k", "key", False)
    assert key["elapsed_share"] == pytest.approx(0.5)


def test_a_clock_outside_the_period_keeps_the_share_within_it() -> None:
    told = {"keys": [{"name": "k", "budgets": [BUDGET]}]}
    assert budget_rows(told, now=0.0)[0]["elapsed_share"] == 0.0
    assert budget_rows(told, now=HALF * 2)[0]["elapsed_share"] == 1.0


def test_a_governors_own_description_gives_budgets_and_limits() -> None:
    from crossroads.gateway.governance import GovernanceSettings, KeyGovernor

    key = {"name": "k", "hash": "sha256:" + "0" * 64, "limits": {"requests_per_minute": 600}}
    given = {"keys": [{**key, "budgets": [{"usd": 5.0, "per": "day"}]}]}
    told = KeyGovernor(GovernanceSettings.model_validate(given)).describe()
    (budget,) = budget_rows(told, now=datetime.now().timestamp())
    assert budget["usd"] == pytest.approx(5.0) and budget["period"] == "day"
    assert 0 <= budget["elapsed_share"] <= 1
    assert limit_texts(told["keys"][0]["limits"]) == ["600 requests per minute"]


def test_limits_of_a_key_name_its_budgets_and_its_calls_at_a_time() -> None:
    limits = [{"kind": "parallel", "per": None, "limit": 2}]
    budgets = [{"usd": 25.0, "per": "month"}, {"usd": 0.05, "per": "day"}]
    assert limit_texts(limits, budgets) == [
        *("2 requests at a time", "$25 per month", "$0.05 per day")
    ]


def test_a_quality_is_shown_within_0_and_1() -> None:
    told = {"points": [{"quality": 1.01, "usd": 0.1}, {"quality": -0.02, "usd": 0.01}]}
    found = frontier_view(told, operating={"quality": 1.01, "usd": 0.1}, preview=None)
    assert [point["quality"] for point in found["points"]] == [1.0, 0.0]
    assert found["operating"]["quality"] == 1.0


def _worker(state: float, in_flight: float, degraded: float) -> Snapshot:
    return Snapshot(
        gauges={
            ("crossroads_workers", ()): 1,
            ("crossroads_breaker_state", ("a",)): state,
            ("crossroads_upstream_in_flight", ("a",)): in_flight,
            ("crossroads_degraded", ("ledger",)): degraded,
        }
    )


def test_upstreams_are_as_bad_as_in_the_worst_worker_and_as_busy_as_in_all() -> None:
    told = {"a": {"state": "closed", "state_for_s": 9.0, "in_flight": 1, "num_calls": 5}}
    figures = merge([_worker(0, 1, 0), _worker(2, 3, 0)])
    found = upstreams_of_all(told, figures)["a"]
    assert found == {
        **{"state": "open", "state_of": "another worker", "in_flight": 4, "num_calls": 5}
    }
    assert upstreams_of_all(told, _worker(0, 1, 0)) == told
    own = {"a": {"state": "open", "state_for_s": 9.0, "in_flight": 1}}
    assert "state_of" not in upstreams_of_all(own, figures)["a"]


def test_a_part_is_as_bad_as_in_the_worst_worker() -> None:
    told = {"status": "ok", "parts": {"ledger": {"status": "ok"}, "telemetry": {"status": "ok"}}}
    found = health_of_all(told, merge([_worker(0, 0, 0), _worker(0, 0, 1)]))
    assert (found["status"], found["workers"]) == ("degraded", 2)
    assert found["parts"]["ledger"]["status"] == "degraded"
    assert "another worker" in found["parts"]["ledger"]["reason"]
    assert found["parts"]["telemetry"] == {"status": "ok"}
    assert health_of_all(told, _worker(0, 0, 0)) == {**told, "workers": 1}


def test_a_key_has_limits_of_its_own_and_those_of_its_team() -> None:
    team = {"name": "t", "limits": [{"kind": "requests", "per": "minute", "limit": 600}]}
    own = {"name": "k", "team": "t", "budgets": [{"usd": 5.0, "per": "day"}], "expires": None}
    told = {"keys": [own, {"name": "alone", "team": ""}], "teams": [team]}
    first, second = key_rows(told)
    assert first == {"name": "k", "team": "t", "expires": None} | {
        "limits": ["$5 per day"],
        "team_limits": ["600 requests per minute"],
    }
    assert (second["limits"], second["team_limits"]) == ([], [])


def test_what_one_worker_waits_for_is_not_told_of_another() -> None:
    told = {"m": {"state": "half_open", "waits_for_probe": True, "state_for_s": 3.0}}
    gauges = {("crossroads_workers", ()): 2.0, ("crossroads_breaker_state", ("m",)): 2.0}
    found = upstreams_of_all(told, Snapshot(gauges=gauges))
    assert found["m"] == {"state": "open", "state_of": "another worker"}
