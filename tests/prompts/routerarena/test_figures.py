from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.metrics import arena_score
from crossroads.prompts.routerarena.figures import (
    COST_MAX,
    COST_MIN,
    best_reachable_score,
    breakdown,
    deferral_curve,
    headline,
    latency_score,
    optimality,
)
from tests.prompts.routerarena.toy import COST, SCORE

GOLDEN = Path(__file__).parents[2] / "golden" / "routerarena_leaderboard.json"
COSTS = st.floats(COST_MIN, COST_MAX)
BEST = best_reachable_score(SCORE, COST)


def test_the_public_leaderboard_is_recomputed() -> None:
    golden = json.loads(GOLDEN.read_text("utf-8"))
    for accuracy, cost, published in golden["rows"]:
        head = headline([accuracy / 100], [cost / 1000], [False])
        assert 100 * head.arena_score == pytest.approx(published, abs=golden["tolerance"])


@given(st.floats(0.01, 1), st.floats(0.01, 1), COSTS, COSTS)
def test_the_score_grows_with_accuracy_and_falls_with_cost(
    first: float, second: float, cost: float, other_cost: float
) -> None:
    low, high = sorted((first, second))
    cheap, dear = sorted((cost, other_cost))
    assert arena_score(low, cost) <= arena_score(high, cost)
    assert arena_score(first, dear) <= arena_score(first, cheap)


def test_the_ends_of_the_scale() -> None:
    assert arena_score(0.0, 1.0) == 0
    # Cheapness 1 and 0: S = 1.1 A / (0.1 A + 1), and 0.
    assert arena_score(0.5, COST_MIN) == pytest.approx(0.55 / 1.05)
    assert arena_score(0.5, COST_MAX) == 0


@pytest.mark.parametrize(
    ("per_1k", "told"),
    [(0.0, "unrecorded"), (0.001, "below the scale"), (1.0, None), (300.0, "beyond the scale")],
)
def test_costs_off_the_scale_are_clipped_and_told(per_1k: float, told: str | None) -> None:
    head = headline([1.0], [per_1k / 1000], [False])
    assert 0 <= head.arena_score <= 1
    assert (told is None) == (head.notes == ())
    assert told is None or told in head.notes[0]


def test_a_failure_scores_zero_and_is_neither_dropped_nor_free() -> None:
    head = headline([1.0, 1.0], [0.001, 0.003], [False, True])
    assert head.accuracy == 0.5
    assert head.cost_per_1k_usd == pytest.approx(2.0)
    assert head.num_failed == 1
    answered_only = headline([1.0], [0.001], [False])
    assert head.arena_score < answered_only.arena_score


@pytest.mark.parametrize(
    ("score", "cost", "failed"),
    [([], [], []), ([1.0], [0.1, 0.1], [False]), ([2.0], [0.1], [False]),
     ([1.0], [-0.1], [False]), ([1.0], [np.nan], [False]), ([np.nan], [0.1], [False])],
)  # fmt: skip
def test_figures_of_nonsense_are_refused(
    score: list[float], cost: list[float], failed: list[bool]
) -> None:
    with pytest.raises(InputError):
        headline(score, cost, failed)


def test_optimality_by_hand() -> None:
    # Solvable: rows 0 to 4. Cheapest right: small, small, large, large, large.
    choice = np.array([1, 0, 1, 0, 0, 0])
    found = optimality(SCORE, COST, choice)
    assert found.num_rows == 5
    assert found.selection == pytest.approx(2 / 5)  # rows 1 and 2
    assert found.cost == pytest.approx((2 * 0.001 + 3 * 0.01) / (2 * 0.01 + 3 * 0.001))
    assert found.accuracy == pytest.approx((1 + 1 + 1 + 0 + 0.5) / 5)


def test_counting_only_rows_the_router_got_right_flatters() -> None:
    choice = np.array([1, 0, 1, 0, 0, 0])
    found = optimality(SCORE, COST, choice, mode="router_correct")
    assert found.num_rows == 3
    assert found.accuracy == 1.0
    assert found.selection > optimality(SCORE, COST, choice).selection


def test_optimality_leaves_out_rows_that_were_not_run_everywhere() -> None:
    score = SCORE.copy()
    score[0, 1] = np.nan
    assert optimality(score, COST, np.zeros(6, dtype=np.int64)).num_rows == 4
    nothing = optimality(np.full((2, 2), np.nan), COST[:2], np.zeros(2, dtype=np.int64))
    assert nothing.num_rows == 0 and np.isnan(nothing.selection)
    with pytest.raises(UsageError, match="all_solvable"):
        optimality(SCORE, COST, np.zeros(6, dtype=np.int64), mode="all")  # type: ignore[arg-type]


def test_of_right_models_at_one_price_any_is_optimal() -> None:
    score, cost = np.ones((1, 2)), np.full((1, 2), 0.5)
    for choice in (0, 1):
        assert optimality(score, cost, np.array([choice])).selection == 1.0


@given(st.floats(0.001, 1e5), st.floats(0.001, 1e5))
def test_a_faster_decision_never_scores_less(first: float, second: float) -> None:
    fast, slow = sorted((first, second))
    assert 0 <= latency_score(slow) <= latency_score(fast) <= 100


def test_the_latency_scale_is_logarithmic() -> None:
    assert [latency_score(ms) for ms in (1, 10, 100, 1000, 10_000)] == pytest.approx(
        [100, 75, 50, 25, 0]
    )
    with pytest.raises(InputError, match="above 0"):
        latency_score(0)


def test_a_breakdown_leaves_out_rows_without_a_label() -> None:
    found = breakdown([1, 0, 0.5], {"domain": ["b", "a", ""], "bloom": ["", "", ""]})
    assert found == {
        "domain": {"a": {"accuracy": 0.0, "num_rows": 1}, "b": {"accuracy": 1.0, "num_rows": 1}}
    }


@given(st.lists(st.integers(0, 1), min_size=6, max_size=6))
def test_no_routing_exceeds_the_best_point_of_the_oracle(choice: list[int]) -> None:
    rows = np.arange(6)
    head = headline(SCORE[rows, choice], COST[rows, choice], [False] * 6)
    assert head.arena_score <= BEST + 1e-9


def test_the_oracles_line_rises_to_the_best_choices() -> None:
    cost, accuracy = deferral_curve(SCORE, COST)
    assert cost == sorted(cost) and accuracy == sorted(accuracy)
    assert accuracy[-1] == pytest.approx(SCORE.max(axis=1).mean())
    assert cost[0] == pytest.approx(1.0)  # everything to the small model
