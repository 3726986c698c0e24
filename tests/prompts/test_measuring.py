from __future__ import annotations

import numpy as np
import pytest

from crossroads.prompts.measuring import cheapest_match, known_costs


def test_no_trade_off_matches_a_model_the_estimates_never_choose() -> None:
    rows = np.arange(8)
    score = np.column_stack([rows >= 0, rows < 0]).astype(np.float32)
    cost = np.tile([2.0, 1.0], (8, 1))
    wrong = np.tile([0.1, 0.9], (8, 1))
    assert cheapest_match(wrong, cost[0], score, cost, 0) == {}


def test_estimates_that_find_the_cheap_right_model_match_below_its_cost() -> None:
    score = np.ones((8, 2), dtype=np.float32)
    cost = np.tile([2.0, 1.0], (8, 1))
    level = np.full((8, 2), 0.8)
    found = cheapest_match(level, cost[0], score, cost, 0)
    assert found["match_cost_ratio"] == pytest.approx(0.5)
    assert found["match_quality"] == 1.0


def test_unknown_costs_count_as_the_dearest_and_as_nothing_where_all_are() -> None:
    assert known_costs(np.array([1.0, np.nan, 3.0])).tolist() == [1.0, 3.0, 3.0]
    assert known_costs(np.full(2, np.nan)).tolist() == [0.0, 0.0]
