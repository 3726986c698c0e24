"""What a fitted router is worth on prompts held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.core.statistics import bootstrap_interval
from crossroads.prompts.decide import DecisionRule, Tradeoff
from crossroads.prompts.features import queries
from crossroads.prompts.metrics import chosen_values, tradeoff_curve
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.router import PromptRouter, column_means

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def measure(
    router: PromptRouter,
    rule: DecisionRule,
    mean_cost_K: Float64,
    table: OutcomeTable,
    *,
    train: Ints,
    test: Ints,
    features: Float32,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics that ``crossroads.prompts.fitted.fit_router`` documents.

    Parameters
    ----------
    mean_cost_K : USD per call, NaN = unknown
    train, test : rows of the table
    features : embeddings of the whole table
    """
    judged = table.take(test)
    best = int(column_means(table.score[train]).argmax())
    estimate = router.predict(queries(table, test, features))
    choice = rule.choose(estimate, known_costs(mean_cost_K))
    rows = np.arange(len(test))
    routed, single = judged.score[rows, choice], judged.score[:, best]
    both = np.isfinite(routed) & np.isfinite(single)
    if not both.any():
        raise InputError("no held-out prompt was answered by the chosen and the best single model")
    gain = (routed - single)[both].astype(np.float64)
    low, high = bootstrap_interval(gain, seed=seed)
    metrics: dict[str, Any] = {
        "quality": float(routed[both].mean()),
        "best_single": table.models[best],
        "best_single_quality": float(single[both].mean()),
        "gain": float(gain.mean()),
        "gain_low": low,
        "gain_high": high,
        "num_train": len(train),
        "num_test": int(both.sum()),
    }
    if judged.cost is not None:
        spent = {
            "cost_usd": judged.cost[rows, choice],
            "best_single_cost_usd": judged.cost[:, best],
        }
        for name, usd in spent.items():
            if np.isfinite(usd[both]).all():
                metrics[name] = float(usd[both].mean())
        if np.isfinite(mean_cost_K).all():
            known = judged.complete & np.isfinite(judged.cost).all(axis=1)
            scores, costs = judged.score[known], judged.cost[known]
            metrics |= cheapest_match(estimate[known], mean_cost_K, scores, costs, best)
    return metrics


def cheapest_match(
    estimate_NK: Float64, mean_cost_K: Float64, score_NK: Float32, cost_NK: Float64, single: int
) -> dict[str, Any]:
    """Return the cheapest trade-off that is as good as model ``single``; empty where none is."""
    if len(score_NK) == 0 or not cost_NK[:, single].mean() > 0:
        return {}
    goal = float(score_NK[:, single].mean(dtype=np.float64)) - 1e-9  # sums are rounded
    curve = tradeoff_curve(estimate_NK, mean_cost_K, score_NK, cost_NK)
    for point in np.argsort(curve.cost, kind="stable"):
        if curve.quality[point] < goal:
            continue
        rule = Tradeoff(_price_between(*curve.price[point : point + 2].tolist()))
        choice = rule.choose(estimate_NK, mean_cost_K)
        quality = float(chosen_values(score_NK, choice).mean())
        if quality >= goal:  # as the rule decides, whatever rounding does to the sweep
            cost = chosen_values(cost_NK, choice).mean() / cost_NK[:, single].mean()
            return {
                "match_rule": str(rule),
                "match_cost_ratio": float(cost),
                "match_quality": quality,
                "match_num_test": len(score_NK),
            }
    return {}


def _price_between(low: float, high: float | None = None) -> float:
    """Return the price of fewest digits well inside an operating point's interval."""
    high = 2 * low if high is None else high
    middle = (low + high) / 2
    rounded = (float(f"{middle:.{digits}g}") for digits in range(1, 17))
    return next((price for price in rounded if low < price < high), middle)


def known_costs(mean_cost_K: Float64) -> Float64:
    """Return mean costs for decision rules: unknown ones as the dearest, zero where all are."""
    known = np.isfinite(mean_cost_K)
    dearest = mean_cost_K[known].max() if known.any() else 0.0
    return np.where(known, mean_cost_K, dearest)
