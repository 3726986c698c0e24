"""The figures of a leaderboard row: accuracy, cost, arena score, optimality, latency, breakdown.

N prompts, K models. Where RouterArena's code and its published numbers part, both readings are
here and the default is the one that tells more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, unknown_name
from crossroads.core.preference import upper_hull
from crossroads.prompts.metrics import arena_score, chosen_values, tradeoff_curve

Float = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Mode = Literal["all_solvable", "router_correct"]

COST_MIN, COST_MAX = 0.0044, 200.0  # USD per 1,000 queries, the ends of the arena score's scale
FASTEST_MS, SLOWEST_MS = 1.0, 10_000.0
_SOLVED = 1.0 - 1e-6  # scores may be stored in single precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """What orders a leaderboard.

    Attributes
    ----------
    accuracy : mean score over all rows, failures as 0
    cost_per_1k_usd : 1000 x sum of the costs / rows
    arena_score : in [0, 1]
    num_rows, num_failed : rows, and those of them without an answer
    notes : what a reader must know of these figures
    """

    accuracy: float
    cost_per_1k_usd: float
    arena_score: float
    num_rows: int
    num_failed: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimality:
    """How near the choices come to the cheapest model that is right.

    Attributes
    ----------
    selection : share of counted rows where the choice is that model
    cost : cost of the optimal choices / cost of the router's; 1 is best
    accuracy : score of the router's choices / score of the optimal ones
    num_rows : rows counted; with none the shares are NaN
    """

    selection: float
    cost: float
    accuracy: float
    num_rows: int


def headline(score_N: npt.ArrayLike, cost_N: npt.ArrayLike, failed_N: npt.ArrayLike) -> Headline:
    """Return accuracy, cost and arena score of answered and failed rows.

    A failed row scores 0, whatever ``score_N`` says of it, and its cost counts: leaving it out of
    the accuracy but in the number of queries would make a failing router look cheap. Raises
    InputError for no rows, lengths that differ, scores outside [0, 1] and costs that are negative
    or unknown.
    """
    score = np.asarray(score_N, dtype=np.float64)
    cost = np.asarray(cost_N, dtype=np.float64)
    failed = np.asarray(failed_N, dtype=bool)
    if not len(score) == len(cost) == len(failed) > 0:
        raise InputError(
            "headline: expected scores, costs and failures of one length, got "
            f"{len(score)}, {len(cost)} and {len(failed)}"
        )
    score = np.where(failed, 0.0, score)
    if not ((score >= 0) & (score <= 1)).all():
        raise InputError("headline: every score of an answered row must be in [0, 1]")
    if not (np.isfinite(cost) & (cost >= 0)).all():
        raise InputError("headline: every cost must be known and at least 0")
    accuracy, per_1k = float(score.mean()), float(1000 * cost.sum() / len(cost))
    return Headline(
        accuracy=accuracy,
        cost_per_1k_usd=per_1k,
        arena_score=arena_score(accuracy, per_1k),
        num_rows=len(score),
        num_failed=int(failed.sum()),
        notes=_cost_notes(per_1k),
    )


def _cost_notes(per_1k: float) -> tuple[str, ...]:
    if per_1k <= 0:
        return ("cost 0: the arena score takes it as unrecorded and is 0",)
    if per_1k < COST_MIN:
        return (
            f"cost {per_1k:.3g} USD per 1,000 is below the scale's {COST_MIN}: counted as if there",
        )
    if per_1k >= COST_MAX:
        return (f"cost {per_1k:.3g} USD per 1,000 is beyond the scale's {COST_MAX}: score 0",)
    return ()


def optimal_choice(score_NK: Float, cost_NK: Float) -> Ints:
    """Return the cheapest model that solves each prompt, shape (N,); -1 where none does."""
    solved_NK = score_NK >= _SOLVED
    cheapest_N = np.where(solved_NK, cost_NK, np.inf).argmin(axis=1)
    return np.where(solved_NK.any(axis=1), cheapest_N, -1)


def optimality(
    score_NK: Float, cost_NK: Float, choice_N: Ints, *, mode: Mode = "all_solvable"
) -> Optimality:
    """Return how near the choices come to the cheapest right model of each prompt.

    Rows where some model was not run, or none is right, are not counted. ``router_correct`` counts
    only rows where the router's choice is right, as later code of the arena does: its accuracy
    ratio is then 1 whatever the router, and the others flatter. The cost is a ratio of sums.
    """
    if mode not in ("all_solvable", "router_correct"):
        raise unknown_name("optimality mode", mode, ("all_solvable", "router_correct"))
    known_N = np.isfinite(score_NK).all(axis=1) & np.isfinite(cost_NK).all(axis=1)
    best_N = np.where(known_N, optimal_choice(np.nan_to_num(score_NK), cost_NK), -1)
    counted = best_N >= 0
    if mode == "router_correct":
        counted &= chosen_values(np.nan_to_num(score_NK), choice_N) >= _SOLVED
    if not counted.any():
        return Optimality(selection=np.nan, cost=np.nan, accuracy=np.nan, num_rows=0)
    score, cost = score_NK[counted], cost_NK[counted]
    best, choice = best_N[counted], choice_N[counted]
    spent_N, least_N = chosen_values(cost, choice), chosen_values(cost, best)
    spent, least = spent_N.sum(), least_N.sum()
    # Of right models at the same lowest cost any will do.
    is_optimal_N = (chosen_values(score, choice) >= _SOLVED) & (spent_N <= least_N)
    return Optimality(
        selection=float(is_optimal_N.mean()),
        cost=float(least / spent) if spent > 0 else 1.0,
        accuracy=float(chosen_values(score, choice).sum() / chosen_values(score, best).sum()),
        num_rows=int(counted.sum()),
    )


def latency_score(decision_ms: float) -> float:
    """Return 0 (10 s and slower) to 100 (1 ms and faster) on a logarithmic scale.

    The arena publishes no mapping; this is the form of its cost scale. Raises InputError unless the
    time is positive and finite.
    """
    if not 0 < decision_ms < np.inf:
        raise InputError(f"latency: expected milliseconds above 0, got {decision_ms!r}")
    span = np.log(SLOWEST_MS) - np.log(FASTEST_MS)
    return float(np.clip(100 * (np.log(SLOWEST_MS) - np.log(decision_ms)) / span, 0.0, 100.0))


def breakdown(
    score_N: npt.ArrayLike, labels: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Return ``{aspect: {label: {accuracy, num_rows}}}``, rows with an empty label left out.

    ``labels`` gives, for each aspect (domain, difficulty, bloom, source), the label of every row.
    Labels are in order of the alphabet; an aspect that labels no row is absent.
    """
    score = np.asarray(score_N, dtype=np.float64)
    table: dict[str, dict[str, dict[str, float | int]]] = {}
    for aspect, column in labels.items():
        values = np.asarray(column, dtype=object)
        for label in sorted({str(value) for value in values if value}):
            mine = score[values == label]
            found = table.setdefault(aspect, {})
            found[label] = {"accuracy": float(mine.mean()), "num_rows": len(mine)}
    return table


def deferral_curve(score_NK: Float, cost_NK: Float) -> tuple[list[float], list[float]]:
    """Return the oracle's line: cost per 1,000 (USD) and accuracy, both growing.

    What perfect foresight reaches at every price of quality; no router on these models is above it.
    """
    sweep = tradeoff_curve(np.asarray(score_NK, np.float64), cost_NK, score_NK, cost_NK)
    # Costs are sums of differences: what should be 0 may be a rounding error away from it.
    hull = upper_hull(np.maximum(np.round(1000 * sweep.cost, 12), 0.0), sweep.quality)
    return hull.cost.tolist(), hull.quality.tolist()


def best_reachable_score(score_NK: Float, cost_NK: Float, *, points: int = 2001) -> float:
    """Return the arena score of the best point of the oracle's line: no router exceeds it.

    The score grows with accuracy and falls with cost, so that its maximum over everything that can
    be reached lies on that line, which is searched at ``points`` places besides its corners.
    """
    cost, accuracy = (np.array(axis) for axis in deferral_curve(score_NK, cost_NK))
    places = np.union1d(np.linspace(cost[0], cost[-1], points), cost)
    return max(
        arena_score(min(float(a), 1.0), float(c))
        for c, a in zip(places, np.interp(places, cost, accuracy), strict=True)
    )
