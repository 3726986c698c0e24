from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crossroads.gateway.policies.estimates import Estimate
from crossroads.gateway.policies.frontier import Frontier
from crossroads.prompts.budget import SpendCurve
from crossroads.prompts.decide import Argmax, BudgetRule, Tradeoff
from crossroads.prompts.fitted import FittedRouter
from tests.gateway.policies.conftest import COSTS, MODELS, stub


def frontier(fitted: FittedRouter, count: int = 300) -> tuple[Frontier, Any]:
    found = Frontier(fitted, range(3))
    quality = np.random.default_rng(0).random((count, 3))
    found.seen([Estimate(row, None, None) for row in quality.tolist()])
    return found, quality


def test_the_points_run_from_best_quality_to_least_cost() -> None:
    found, quality = frontier(stub())
    points = found.describe(Argmax())["points"]
    assert points[0]["quality"] == pytest.approx(quality.max(axis=1).mean())
    assert points[-1]["usd"] == pytest.approx(min(COSTS))
    for name, falls in (("price", False), ("usd", True), ("quality", True)):
        column = [point[name] for point in points]
        assert column == sorted(column, reverse=falls)
    assert len(points) <= 48


def test_the_operating_point_lies_on_the_frontier() -> None:
    found, quality = frontier(stub())
    told = found.describe(Tradeoff(3.0))
    point = told["operating_point"]
    chosen = (quality - 3.0 * np.array(COSTS)).argmax(axis=1)
    assert point["quality"] == pytest.approx(quality[np.arange(300), chosen].mean())
    assert point["usd"] == pytest.approx(np.array(COSTS)[chosen].mean())
    assert sum(point["shares"].values()) == pytest.approx(1)
    at = [p for p in told["points"] if p["price"] <= 3.0][-1]
    assert point["quality"] <= at["quality"] + 1e-9


def test_a_budget_is_the_mean_of_its_two_sides() -> None:
    found, _ = frontier(stub())
    low, high = found.point(Tradeoff(1.0)), found.point(Tradeoff(9.0))
    mixed = found.point(BudgetRule(0.05, 1.0, 9.0, 0.25))
    assert mixed["usd"] == pytest.approx(0.75 * low["usd"] + 0.25 * high["usd"])


def test_only_the_last_512_prompts_count() -> None:
    found, _ = frontier(stub(), 600)
    assert found.point(Argmax())["num_prompts"] == 512


def test_before_the_first_prompt_nothing_is_claimed() -> None:
    found = Frontier(stub(), range(3))
    told = found.describe(Argmax())
    assert told["points"] == []
    assert told["operating_point"]["quality"] is None
    assert [model["quality"] for model in told["models"]] == [None] * 3


def test_what_was_measured_stands_beside_the_estimates() -> None:
    spend = SpendCurve(price=np.array([0.0, 5.0]), usd=np.array([0.05, 0.001]))
    fitted = replace(stub(), spend=spend, metrics={"quality": 0.8, "cost_usd": 0.01, "gain": 0.1})
    told = Frontier(fitted, range(3)).describe(Argmax())
    assert told["measured"] == {"quality": 0.8, "cost_usd": 0.01}
    assert told["spend"] == [[0.0, 0.05], [5.0, 0.001]]


def test_unknown_costs_leave_the_cost_out() -> None:
    found, _ = frontier(stub((float("nan"),) * 3))
    told = found.describe(Argmax())
    assert told["points"] == []
    assert told["operating_point"]["usd"] is None
    assert [model["usd"] for model in told["models"]] == [None] * 3
    assert [model["model"] for model in told["models"]] == list(MODELS)
