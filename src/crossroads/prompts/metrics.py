"""What a routing is worth: quality, cost, regret, trade-off curves, arena score, recovered gap.

N prompts, K models. A routing is a vector of chosen columns, shape (N,); outcomes are the scores in
[0, 1] and the costs of every model on every prompt, shape (N, K), without NaN.

Sources: RouterArena (2025; arena score); RouteLLM, Ong et al. 2024 (performance gap recovered,
call-performance threshold); RouterBench, Hu et al. 2024 (cost-quality hull).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.core.preference import Hull, cost_at_quality
from crossroads.prompts.decide import Argmax

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def chosen_values(value_NK: Float, choice_N: Ints) -> Float64:
    """Return the value of the chosen model on each prompt, shape (N,)."""
    picked = np.take_along_axis(value_NK, choice_N[:, None], axis=1)[:, 0]
    return np.asarray(picked, dtype=np.float64)


def regret(score_NK: Float, choice_N: Ints) -> float:
    """Return the mean gap to the best model of each prompt: 0 for a perfect choice."""
    best_N = score_NK.max(axis=1).astype(np.float64)
    return float((best_N - chosen_values(score_NK, choice_N)).mean())


def arena_score(
    accuracy: float,
    cost_per_1k_usd: float,
    *,
    beta: float = 0.1,
    cost_max: float = 200.0,
    cost_min: float = 0.0044,
) -> float:
    """Return RouterArena's score in [0, 1] (the leaderboard shows it times 100).

    ``S = (1 + beta) A C / (beta A + C)``: the weighted harmonic mean of the accuracy A and of
    ``C = (log2 cost_max - log2 cost) / (log2 cost_max - log2 cost_min)``, in which A dominates.

    C is clipped to [0, 1]: nothing is gained below ``cost_min``, and from ``cost_max`` on the score
    is 0. It is also 0 when A is 0, and for a cost of 0 or less: there RouterArena takes the cost to
    be unrecorded. Raises InputError unless accuracy is in [0, 1] and the cost is finite.
    """
    if not 0 <= accuracy <= 1:
        raise InputError(f"arena score: expected an accuracy in [0, 1], got {accuracy!r}")
    if not np.isfinite(cost_per_1k_usd):
        raise InputError(f"arena score: expected a finite cost, got {cost_per_1k_usd!r}")
    if accuracy == 0 or cost_per_1k_usd <= 0:
        return 0.0
    span = np.log2(cost_max) - np.log2(cost_min)
    cheapness = min(1.0, float((np.log2(cost_max) - np.log2(cost_per_1k_usd)) / span))
    if cheapness <= 0:
        return 0.0
    return (1 + beta) * accuracy * cheapness / (beta * accuracy + cheapness)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Operating points of one router, from quality at any price to the cheapest model.

    ``price`` (lambda, quality per unit of cost) is 0 at the first point and grows; ``cost`` (of a
    call) and ``quality`` are means over the judged prompts; all shape (P,).
    """

    price: Float64
    cost: Float64
    quality: Float64


def tradeoff_curve(
    estimate_NK: Float, expected_cost_K: Float, score_NK: Float, cost_NK: Float
) -> Curve:
    """Return what every value of lambda in ``argmax estimate - lambda * expected cost`` achieves.

    The sweep is exact: as lambda grows, a prompt leaves its model k for the cheaper model j with
    the smallest ``(estimate_k - estimate_j) / (cost_k - cost_j)``; all such switches of all
    prompts, in order, are the points of the curve. The first is argmax (ties to the cheaper model).
    """
    estimate_NK = np.asarray(estimate_NK, dtype=np.float64)
    expected_NK = np.broadcast_to(np.asarray(expected_cost_K, np.float64), estimate_NK.shape)
    at_N = Argmax().choose(estimate_NK, expected_NK)
    start_cost = chosen_values(cost_NK, at_N).mean()
    start_quality = chosen_values(score_NK, at_N).mean()
    prices: list[Float64] = []
    cost_steps: list[Float64] = []
    quality_steps: list[Float64] = []
    rows = np.arange(len(estimate_NK))
    price_n = np.zeros(len(rows))
    while len(rows):
        # Rounding may put a later switch a hair before an earlier one; prices never fall.
        next_price_n, next_n = _next_switch(estimate_NK[rows], expected_NK[rows], at_N[rows])
        moving = np.isfinite(next_price_n)
        price_n = np.maximum(next_price_n, price_n)[moving]
        rows, next_n = rows[moving], next_n[moving]
        prices.append(price_n)
        cost_steps.append(cost_NK[rows, next_n] - cost_NK[rows, at_N[rows]])
        quality_steps.append(score_NK[rows, next_n].astype(np.float64) - score_NK[rows, at_N[rows]])
        at_N[rows] = next_n
    price = np.concatenate([[0.0], *prices])
    order = np.argsort(price, kind="stable")
    price = price[order]
    n = len(estimate_NK)
    cost = start_cost + np.concatenate([[0.0], *cost_steps])[order].cumsum() / n
    quality = start_quality + np.concatenate([[0.0], *quality_steps])[order].cumsum() / n
    # Switches at one price happen together: only the last of them is an operating point.
    keep = np.append(price[1:] > price[:-1], True)
    return Curve(price=price[keep], cost=cost[keep], quality=quality[keep])


def _next_switch(estimate_nK: Float, cost_nK: Float, at_n: Ints) -> tuple[Float64, Ints]:
    """Return the price at which each row leaves its model (inf: never) and the model it goes to."""
    here = np.arange(len(at_n))
    saving_nK = cost_nK[here, at_n][:, None] - cost_nK
    loss_nK = estimate_nK[here, at_n][:, None] - estimate_nK
    cheaper = saving_nK > 0
    price_nK = np.where(cheaper, loss_nK / np.where(cheaper, saving_nK, 1.0), np.inf)
    price_n = price_nK.min(axis=1)
    # Of models reached at the same price the cheapest is where the row ends up.
    tied = price_nK <= price_n[:, None]
    return price_n, np.where(tied, cost_nK, np.inf).argmin(axis=1)


def relative_cost_at_quality(hull: Hull, quality: float, cost: float) -> float:
    """Return the smallest hull cost that reaches ``quality``, as a multiple of ``cost``.

    inf where the hull never reaches it, NaN for a cost of 0. A hull of judged prompts picks its
    operating point with hindsight: served, the trade-off has to be set beforehand.
    """
    if cost <= 0:
        return float("nan")
    return float(cost_at_quality(hull, quality)) / cost


def gap_recovered(
    weak_scores: npt.ArrayLike,
    strong_scores: npt.ArrayLike,
    preference_for_strong: npt.ArrayLike,
    *,
    steps: int = 101,
) -> tuple[Float64, Float64]:
    """Return (strong fraction, PGR), each shape (steps,), on an even grid of fractions.

    ``PGR(p) = (accuracy(p) - weak accuracy) / (strong accuracy - weak accuracy)`` when the share p
    of prompts with the highest preference, all arguments shape (N,), goes to the strong model.
    Prompts of equal preference are split at random, in expectation: the curve is linear between
    the distinct thresholds. NaN where both models are equally accurate.
    """
    weak = np.asarray(weak_scores, dtype=np.float64)
    strong = np.asarray(strong_scores, dtype=np.float64)
    preference = np.asarray(preference_for_strong, dtype=np.float64)
    if not (len(weak) == len(strong) == len(preference) > 0) or steps < 2:
        raise InputError(
            "gap recovered: expected three arrays of one length and at least 2 steps, got "
            f"{len(weak)}, {len(strong)} and {len(preference)} values and {steps} steps"
        )
    order = np.argsort(-preference, kind="stable")
    gained = np.concatenate([[0.0], (strong - weak)[order].cumsum()]) / len(weak)
    thresholds = preference[order]
    at_threshold = np.concatenate([[True], thresholds[1:] < thresholds[:-1], [True]])
    fraction = np.flatnonzero(at_threshold) / len(weak)
    grid = np.linspace(0.0, 1.0, steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        pgr = np.interp(grid, fraction, gained[at_threshold]) / np.float64(gained[-1])
    return grid, np.where(np.isfinite(pgr), pgr, np.nan)


def apgr(
    weak_scores: npt.ArrayLike,
    strong_scores: npt.ArrayLike,
    preference_for_strong: npt.ArrayLike,
    *,
    steps: int = 101,
) -> float:
    """Return the average performance gap recovered: 0.5 for a random preference.

    The trapezoid over ``gap_recovered``. It exceeds 1 where the models are complementary and
    the preference is good.
    """
    fraction, pgr = gap_recovered(weak_scores, strong_scores, preference_for_strong, steps=steps)
    return float(np.trapezoid(pgr, fraction))


def cpt(
    weak_scores: npt.ArrayLike,
    strong_scores: npt.ArrayLike,
    preference_for_strong: npt.ArrayLike,
    target: float,
    *,
    steps: int = 101,
) -> float:
    """Return the smallest strong fraction whose recovered gap is ``target`` (0.5 for CPT(50%)).

    Linear between grid points; inf where no fraction reaches it, NaN where there is no gap.
    """
    fraction, pgr = gap_recovered(weak_scores, strong_scores, preference_for_strong, steps=steps)
    if np.isnan(pgr).any():
        return float("nan")
    reached = np.flatnonzero(pgr >= target)
    if len(reached) == 0:
        return float("inf")
    i = int(reached[0])
    if i == 0:
        return 0.0
    share = (target - pgr[i - 1]) / (pgr[i] - pgr[i - 1])
    return float(fraction[i - 1] + share * (fraction[i] - fraction[i - 1]))
