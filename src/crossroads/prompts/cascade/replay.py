"""Cascades against deciding beforehand and against single models, on recorded outcomes.

Every figure is replayed: no model is asked. All operating points, thresholds and prices alike, are
chosen on calibration prompts and played on the same test prompts; the cost of a cascade is the sum
of the calls it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.preference import aiq, upper_hull
from crossroads.prompts.baselines import SingleModels
from crossroads.prompts.cascade.calibrate import Calibrated
from crossroads.prompts.cascade.chain import Acceptance, acceptance_of
from crossroads.prompts.decide import DecisionRule, Tradeoff
from crossroads.prompts.metrics import chosen_values, tradeoff_curve

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Operating points on the test prompts, and the mean quality over all budgets (AIQ, in [0, 1]).

    Attributes
    ----------
    cascade_cost, cascade_quality, cascade_calls : (P,) mean sum of costs, score, models asked
    routing_cost, routing_quality : (R,) the same of deciding beforehand
    cascade_aiq, routing_aiq, singles_aiq : of cascades, of routing beforehand, and of mixing
        single models at random, over budgets from the cheapest to the dearest single model
    """

    cascade_cost: Float64
    cascade_quality: Float64
    cascade_calls: Float64
    routing_cost: Float64
    routing_quality: Float64
    cascade_aiq: float
    routing_aiq: float
    singles_aiq: float


def routing_frontier(
    estimate_NK: Float, expected_cost_K: Float, score_NK: Float, cost_NK: Float
) -> tuple[Tradeoff, ...]:
    """Return the trade-offs on the cost-quality hull of calibration prompts, by rising cost."""
    sweep = tradeoff_curve(estimate_NK, expected_cost_K, score_NK, cost_NK)
    until = np.append(sweep.price[1:], 2 * sweep.price[-1])  # a point holds up to the next switch
    hull = upper_hull(sweep.cost, sweep.quality)
    return tuple(Tradeoff(float(sweep.price[i] + until[i]) / 2) for i in hull.index)


def compare_with_routing(
    cascades: Sequence[Calibrated],
    rules: Sequence[DecisionRule],
    *,
    acceptance: Acceptance,
    estimate_NK: Float,
    expected_cost_K: Float,
    score_NK: Float,
    cost_NK: Float,
) -> Contest:
    """Replay calibrated cascades, and decision rules on a router's estimates, on test prompts.

    ``acceptance``, (N, K) or a function of a cascade's order, judges the answers; ``estimate_NK``
    is made before them. Scores and costs are recorded, (N, K), without NaN. ``cascade_frontier``
    and ``routing_frontier`` give the contestants.
    """
    played = [
        c.cascade.replay(acceptance_of(acceptance, c.cascade.order), cost_NK) for c in cascades
    ]
    chosen = [rule.choose(estimate_NK, expected_cost_K) for rule in rules]
    cascade_cost = np.array([p.cost_N.mean() for p in played])
    cascade_quality = np.array([chosen_values(score_NK, p.chosen_N).mean() for p in played])
    routing_cost = np.array([chosen_values(cost_NK, c).mean() for c in chosen])
    routing_quality = np.array([chosen_values(score_NK, c).mean() for c in chosen])
    singles = SingleModels.of(score_NK, cost_NK)
    budgets = singles.cost_range
    return Contest(
        cascade_cost=cascade_cost,
        cascade_quality=cascade_quality,
        cascade_calls=np.array([p.num_calls_N.mean() for p in played]),
        routing_cost=routing_cost,
        routing_quality=routing_quality,
        cascade_aiq=aiq(cascade_cost, cascade_quality, *budgets),
        routing_aiq=aiq(routing_cost, routing_quality, *budgets),
        singles_aiq=aiq(singles.cost, singles.quality, *budgets),
    )
