"""Judging one router on one split: its metrics, its trade-off curves, its speed.

N judged prompts, K models. The rule is argmax of the estimated quality; the whole range of prices
is swept besides. Metrics that need prices are left out where a model's cost is unknown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.calibration.scores import (
    area_under_risk_coverage,
    brier,
    coverage_at_risk,
    expected_calibration_error,
    reliability_curve,
)
from crossroads.core.preference import aiq, hull_quality_at, upper_hull
from crossroads.prompts.arena_metrics import DOLLARS
from crossroads.prompts.baselines import SingleModels
from crossroads.prompts.decide import Argmax
from crossroads.prompts.metrics import (
    apgr,
    arena_score,
    chosen_values,
    cpt,
    regret,
    relative_cost_at_quality,
    tradeoff_curve,
)
from crossroads.prompts.router import PromptRouter, Queries
from crossroads.prompts.splits import Split

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Curves = dict[str, list[list[float]]]

CURVE_POINTS = 100  # kept of each sweep: enough to draw, small enough to keep
TIMED_DECISIONS = 64


def judge(
    split: Split,
    estimate_NK: Float,
    choice_N: Ints,
    worth_NK: Float,
    *,
    checked: bool = True,
) -> tuple[dict[str, float], Curves]:
    """Return the metrics of a choice and the curves of the estimates behind it.

    ``worth_NK`` is what each choice is credited with: the scores, or for a bound its own figures.
    ``checked`` says whether the estimates are claims that can be held against the scores; those of
    a bound are the scores.
    """
    quality = float(chosen_values(worth_NK, choice_N).mean())
    best = float(split.score[:, split.best_single].mean(dtype=np.float64))
    metrics = {
        "quality": quality,
        "gain_over_best_single": 100 * (quality - best),
        "regret": regret(split.score, choice_N) if worth_NK is split.score else float("nan"),
    }
    curves: Curves = {}
    if checked:
        calibration, curves = _calibration(split, estimate_NK, choice_N, 1 - best)
        metrics |= calibration
    if split.score.shape[1] == 2:
        metrics |= _two_models(split, estimate_NK, worth_NK)
    if split.cost is None:
        return metrics, curves
    found, cost_curves = _judge_cost(split, split.cost, estimate_NK, choice_N, worth_NK)
    return metrics | found, curves | cost_curves


def _calibration(
    split: Split, estimate_NK: Float, choice_N: Ints, best_single_risk: float
) -> tuple[dict[str, float], Curves]:
    """Return how far the estimate of the chosen model can be believed.

    The curve's points are (mean estimate, mean score, prompts) of each bin.
    """
    estimate_N = chosen_values(estimate_NK, choice_N)
    score_N = chosen_values(split.score, choice_N)
    claim_N, loss_N = np.clip(estimate_N, 0.0, 1.0), 1 - score_N
    curve = reliability_curve(claim_N, score_N)
    metrics = {
        "ece": expected_calibration_error(claim_N, score_N),
        "brier": brier(claim_N, score_N),
        "aurc": area_under_risk_coverage(estimate_N, loss_N),
        "coverage_at_half_risk": coverage_at_risk(estimate_N, loss_N, best_single_risk / 2),
    }
    bins = np.column_stack([curve.probability, curve.frequency, curve.count])
    return metrics, {"reliability": [[float(value) for value in row] for row in bins]}


def _judge_cost(
    split: Split, cost: Float64, estimate_NK: Float, choice_N: Ints, worth_NK: Float
) -> tuple[dict[str, float], Curves]:
    """Return the metrics that need prices, and the curves.

    Their points are (cost of 1,000 prompts, quality); those of the frontier and of its hull go on
    with lambda, quality per unit of cost, as in the rule ``tradeoff:LAMBDA``.
    """
    quality = float(chosen_values(worth_NK, choice_N).mean())
    cost_per_1k = 1000 * float(chosen_values(cost, choice_N).mean())
    singles = SingleModels.of(split.score, cost)
    low, high = singles.cost_range
    sweep = tradeoff_curve(estimate_NK, split.expected_cost, worth_NK, cost)
    hull = upper_hull(sweep.cost, sweep.quality)
    # With one price for all models there is no budget to range over.
    ranged = high > low * (1 + 1e-9)
    own = aiq(sweep.cost, sweep.quality, low, high) if ranged else float("nan")
    mixed = aiq(singles.cost, singles.quality, low, high) if ranged else float("nan")
    best = split.best_single
    found = {
        "cost_per_1k": cost_per_1k,
        "aiq": 100 * own,
        "gain_over_mix": 100 * (own - mixed),
        "cost_at_equal_quality": relative_cost_at_quality(
            hull, float(singles.quality[best]), float(singles.cost[best])
        ),
        "gain_at_equal_cost": 100 * (quality - _mix_quality(singles, cost_per_1k / 1000)),
    }
    if split.cost_unit == DOLLARS:
        is_paid = cost_per_1k > 0
        found["arena_score"] = arena_score(quality, cost_per_1k) if is_paid else float("nan")
    curves = {
        "frontier": _points(sweep.cost, sweep.quality, sweep.price),
        "hull": _points(hull.cost, hull.quality, sweep.price[hull.index]),
        "singles": [[1000 * c, q] for c, q in zip(singles.cost, singles.quality, strict=True)],
    }
    return found, curves


def _mix_quality(singles: SingleModels, cost: float) -> float:
    """Return what a random mix reaches at a mean cost; below the cheapest model it is that one."""
    hull = singles.hull
    return float(hull_quality_at(hull, max(cost, float(hull.cost[0]))))


def _two_models(split: Split, estimate_NK: Float, worth_NK: Float) -> dict[str, float]:
    """Weak and strong are told apart on the training side."""
    weak, strong = np.argsort(split.training.mean_scores(), kind="stable")
    preference = estimate_NK[:, strong] - estimate_NK[:, weak]
    outcome = worth_NK[:, weak], worth_NK[:, strong], preference
    return {"apgr": apgr(*outcome), "cpt50": cpt(*outcome, 0.5), "cpt80": cpt(*outcome, 0.8)}


def _points(cost: Float64, quality: Float64, price: Float64) -> list[list[float]]:
    """Thin a curve to CURVE_POINTS, first and last kept."""
    kept = np.unique(np.linspace(0, len(cost) - 1, CURVE_POINTS).round().astype(int))
    rows = np.column_stack([1000 * cost[kept], quality[kept], price[kept]])
    return [[float(value) for value in row] for row in rows]


def time_decisions(
    router: PromptRouter, queries: Queries, expected_cost: Float64
) -> dict[str, float]:
    """Time single decisions on up to TIMED_DECISIONS prompts spread over the queries."""
    rows = np.unique(np.linspace(0, len(queries) - 1, TIMED_DECISIONS).astype(int))
    singles = [queries.take(slice(row, row + 1)) for row in rows]
    rule = Argmax()
    rule.choose(router.predict(singles[0]), expected_cost)  # the first call warms caches
    wall: list[float] = []
    cpu_started = time.process_time()
    for single in singles:
        started = time.perf_counter()
        rule.choose(router.predict(single), expected_cost)
        wall.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu_started
    return {"latency_us_p50": 1e6 * float(np.median(wall)), "cpu_us": 1e6 * cpu / len(singles)}


def model_shares(models: Sequence[str], choice: Ints) -> dict[str, float]:
    """Share of prompts sent to each model."""
    counts = np.bincount(choice, minlength=len(models)) / len(choice)
    return {model: float(share) for model, share in zip(models, counts, strict=True) if share > 0}


def quality_by(
    groups: npt.NDArray[np.object_] | None, quality_N: Float64
) -> Mapping[str, Mapping[str, float]]:
    """Return {group: {quality, count}}, empty without groups."""
    if groups is None:
        return {}
    names, which = np.unique(groups.astype(np.str_), return_inverse=True)
    counts = np.bincount(which)
    means = np.bincount(which, weights=quality_N) / counts
    return {
        str(name): {"quality": float(mean), "count": int(count)}
        for name, mean, count in zip(names, means, counts, strict=True)
    }
