"""Judging one router on one split: its metrics, its trade-off curves, its speed.

N judged prompts, K models. The rule is argmax of the estimated quality; the whole range of prices
is swept besides. Metrics that need prices are left out where a model's cost is unknown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.arena import Metric
from crossroads.core.preference import aiq, upper_hull
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
from crossroads.prompts.router import PromptRouter, Queries, TrainingSet

Float = npt.NDArray[np.floating[Any]]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Curves = dict[str, list[list[float]]]

CURVE_POINTS = 100  # kept of each sweep: enough to draw, small enough to keep
TIMED_DECISIONS = 64
DOLLARS = "USD"  # the unit the arena score is defined in
TIMINGS = ("latency_us_p50", "cpu_us")  # the metrics that differ from run to run

QUALITY = (
    Metric(
        name="quality",
        title="quality",
        digits=4,
        help="mean score of the model of highest estimated quality",
    ),
    Metric(
        name="gain_over_best_single",
        title="gain",
        unit="points",
        digits=2,
        help="100 x quality above the single model that was best in training",
    ),
)
COST = (
    Metric(
        name="cost_per_1k",
        title="cost",
        higher_is_better=False,
        digits=4,
        help="cost of 1,000 prompts at that choice",
    ),
    Metric(
        name="aiq",
        title="AIQ",
        digits=2,
        help="100 x mean quality over all budgets from the cheapest to the dearest single model",
    ),
    Metric(
        name="gain_over_mix",
        title="over mix",
        unit="points",
        digits=2,
        headline=False,
        help="AIQ minus the AIQ of mixing single models at random",
    ),
    Metric(
        name="cost_at_equal_quality",
        title="match cost",
        unit="x",
        higher_is_better=False,
        help=(
            "cost that reaches the best single model's quality, over that model's cost; read off "
            "the judged prompts' own hull, so the trade-off is picked with hindsight"
        ),
    ),
)
ARENA_SCORE = Metric(
    name="arena_score",
    title="arena score",
    digits=4,
    headline=False,
    help="RouterArena's score of quality and cost in USD, in [0, 1]",
)
REGRET = (
    Metric(
        name="regret",
        title="regret",
        higher_is_better=False,
        digits=4,
        headline=False,
        help="quality missing to a choice with hindsight",
    ),
)
TWO_MODELS = (
    Metric(
        name="apgr",
        title="APGR",
        headline=False,
        help="average performance gap recovered between weak and strong model; random 0.5",
    ),
    Metric(
        name="cpt50",
        title="CPT 50",
        higher_is_better=False,
        headline=False,
        help="share of strong calls that recovers half the gap",
    ),
    Metric(
        name="cpt80",
        title="CPT 80",
        higher_is_better=False,
        headline=False,
        help="share of strong calls that recovers 80% of the gap",
    ),
)
LATENCY = (
    Metric(
        name="latency_us_p50",
        title="latency",
        unit="us",
        higher_is_better=False,
        digits=0,
        help="median time of one decision alone, features given",
    ),
    Metric(
        name="cpu_us",
        title="CPU",
        unit="us",
        higher_is_better=False,
        digits=0,
        headline=False,
        help="mean CPU time of one decision alone, features given",
    ),
)


def cost_metrics(unit: str) -> tuple[Metric, ...]:
    """Return the metrics of a table with costs in this unit."""
    cost, *others = COST
    score = (ARENA_SCORE,) if unit == DOLLARS else ()
    return (replace(cost, unit=f"{unit} / 1k"), *others, *score)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One seed: what may be learnt from, and what is judged."""

    training: TrainingSet
    queries: Queries  # as a router with hindsight may see them; see ``asked``
    score: Float32  # (N, K), no NaN
    cost: Float64 | None  # (N, K) in cost_unit, no NaN
    cost_unit: str
    expected_cost: Float64  # (K,) mean cost in training, all the rule knows; 0 without prices
    best_single: int  # by mean score in training

    def asked(self, *, hindsight: bool) -> Queries:
        """Return the judged prompts; what a served prompt does not carry only with hindsight."""
        if hindsight:
            return self.queries
        return replace(self.queries, truth=None, domains=None, chance=None)


def judge(
    split: Split, estimate_NK: Float, choice_N: Ints, worth_NK: Float
) -> tuple[dict[str, float], Curves]:
    """Return the metrics of a choice and the curves of the estimates behind it.

    ``worth_NK`` is what each choice is credited with: the scores, or for a bound its own figures.
    """
    quality = float(chosen_values(worth_NK, choice_N).mean())
    best = float(split.score[:, split.best_single].mean(dtype=np.float64))
    metrics = {
        "quality": quality,
        "gain_over_best_single": 100 * (quality - best),
        "regret": regret(split.score, choice_N) if worth_NK is split.score else float("nan"),
    }
    if split.score.shape[1] == 2:
        metrics |= _two_models(split, estimate_NK, worth_NK)
    if split.cost is None:
        return metrics, {}
    cost_metrics, curves = _judge_cost(split, split.cost, estimate_NK, choice_N, worth_NK)
    return metrics | cost_metrics, curves


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
    singles = [_one(queries, row) for row in rows]
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


def _one(queries: Queries, row: int) -> Queries:
    parts = {n: v[row : row + 1] for n, v in vars(queries).items() if v is not None}
    return replace(queries, **parts)


def model_shares(models: Sequence[str], choice: Ints) -> dict[str, float]:
    """Share of prompts sent to each model."""
    counts = np.bincount(choice, minlength=len(models)) / len(choice)
    return {model: float(share) for model, share in zip(models, counts, strict=True) if share > 0}


def quality_by_domain(
    domains: npt.NDArray[np.object_] | None, quality_N: Float64
) -> Mapping[str, Mapping[str, float]]:
    """Return {domain: {quality, count}}, empty without domains."""
    if domains is None:
        return {}
    names, which = np.unique(domains.astype(np.str_), return_inverse=True)
    counts = np.bincount(which)
    means = np.bincount(which, weights=quality_N) / counts
    return {
        str(name): {"quality": float(mean), "count": int(count)}
        for name, mean, count in zip(names, means, counts, strict=True)
    }
