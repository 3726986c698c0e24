"""Cascades against deciding beforehand and against single models, on recorded outcomes.

Every figure is replayed: no model is asked. All contestants are swept over their operating points
on the same test prompts, and the cost of a cascade is the sum of the calls it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.preference import aiq
from crossroads.prompts.baselines import SingleModels
from crossroads.prompts.cascade.calibrate import Calibrated
from crossroads.prompts.metrics import chosen_values, tradeoff_curve

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Operating points on the test prompts, and the mean quality over all budgets (AIQ, in [0, 1]).

    Attributes
    ----------
    cascade_cost, cascade_quality, cascade_calls : (P,) mean sum of costs, score, models asked
    cascade_aiq, routing_aiq, singles_aiq : of cascades, of routing beforehand, and of mixing
        single models at random, over budgets from the cheapest to the dearest single model
    """

    cascade_cost: Float64
    cascade_quality: Float64
    cascade_calls: Float64
    cascade_aiq: float
    routing_aiq: float
    singles_aiq: float


def compare_with_routing(
    cascades: Sequence[Calibrated],
    *,
    acceptance_NK: Float,
    estimate_NK: Float,
    expected_cost_K: Float,
    score_NK: Float,
    cost_NK: Float,
) -> Contest:
    """Replay calibrated cascades, and the trade-offs of a router's estimates, on test prompts.

    ``acceptance_NK`` judges the answers, ``estimate_NK`` is made before them; scores and costs are
    recorded, (N, K), without NaN.
    """
    costs, qualities, calls = [], [], []
    for calibrated in cascades:
        played = calibrated.cascade.replay(acceptance_NK, cost_NK)
        costs.append(float(played.cost_N.mean()))
        qualities.append(float(chosen_values(score_NK, played.chosen_N).mean()))
        calls.append(float(played.num_calls_N.mean()))
    singles = SingleModels.of(score_NK, cost_NK)
    low, high = singles.cost_range
    sweep = tradeoff_curve(estimate_NK, expected_cost_K, score_NK, cost_NK)
    return Contest(
        cascade_cost=np.array(costs),
        cascade_quality=np.array(qualities),
        cascade_calls=np.array(calls),
        cascade_aiq=aiq(costs, qualities, low, high),
        routing_aiq=aiq(sweep.cost, sweep.quality, low, high),
        singles_aiq=aiq(singles.cost, singles.quality, low, high),
    )
