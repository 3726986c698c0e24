"""Cascades beside routing and single models on the same prompts."""

from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.preference import upper_hull
from crossroads.prompts.cascade import (
    cascade_frontier,
    chains,
    compare_with_routing,
    routing_frontier,
)
from crossroads.prompts.decide import Tradeoff
from crossroads.prompts.metrics import tradeoff_curve


def test_with_a_perfect_verifier_a_cascade_beats_blind_routing_and_mixing() -> None:
    rng = np.random.default_rng(0)
    score = (rng.random((400, 2)) < [0.5, 0.8]).astype(float)
    cost = np.tile([1.0, 10.0], (400, 1))
    frontier = cascade_frontier(score, cost, score, orders=chains(cost.mean(axis=0)))
    estimate = np.tile(score.mean(axis=0), (400, 1))
    contest = compare_with_routing(
        frontier,
        routing_frontier(estimate, cost[0], score, cost),
        acceptance=score,
        estimate_NK=estimate,
        expected_cost_K=cost[0],
        score_NK=score,
        cost_NK=cost,
    )
    assert contest.routing_aiq == pytest.approx(contest.singles_aiq)
    assert contest.cascade_aiq > contest.routing_aiq
    assert contest.cascade_quality.max() == pytest.approx(score.max(axis=1).mean())
    assert contest.cascade_calls.min() == 1.0
    # Every second call is paid on top of the first.
    assert contest.cascade_cost == pytest.approx(1.0 + 10.0 * (contest.cascade_calls - 1))


def test_with_no_verifier_at_all_a_cascade_is_no_better_than_mixing() -> None:
    score = np.tile([[0.0, 1.0], [1.0, 1.0]], (50, 1))
    cost = np.tile([1.0, 10.0], (100, 1))
    blind = np.ones((100, 2))
    frontier = cascade_frontier(score, cost, blind, orders=chains(cost.mean(axis=0)))
    contest = compare_with_routing(
        frontier,
        [Tradeoff(0.0), Tradeoff(1.0)],
        acceptance=blind,
        estimate_NK=np.tile([0.5, 1.0], (100, 1)),
        expected_cost_K=cost[0],
        score_NK=score,
        cost_NK=cost,
    )
    assert contest.cascade_aiq == pytest.approx(contest.singles_aiq)


def test_the_trade_offs_of_the_frontier_reach_its_hull_where_they_were_chosen() -> None:
    rng = np.random.default_rng(1)
    score, cost = rng.random((200, 3)), np.array([1.0, 2.0, 5.0])
    estimate, cost_NK = score + rng.normal(0, 0.2, (200, 3)), np.tile(cost, (200, 1))
    sweep = tradeoff_curve(estimate, cost, score, cost_NK)
    hull = upper_hull(sweep.cost, sweep.quality)
    rules = routing_frontier(estimate, cost, score, cost_NK)
    chosen = [rule.choose(estimate, cost) for rule in rules]
    assert [cost[c].mean() for c in chosen] == pytest.approx(list(hull.cost))
    rows = np.arange(200)
    assert [score[rows, c].mean() for c in chosen] == pytest.approx(list(hull.quality))
