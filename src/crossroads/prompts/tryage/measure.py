"""What choices of experts cost: loss, regret, agreement with the best, share of the gap closed.

Near-ties make agreement a noisy figure: two experts of almost equal loss count as right and wrong.
Regret, the loss beyond the best expert's, tells whether it mattered. Both are reported.

Shapes: N prompts, K experts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.preference import hull_quality_at, upper_hull

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceFigures:
    """Means over prompts.

    Attributes
    ----------
    loss : of the chosen experts
    regret : loss less that of the best expert of each prompt, >= 0
    agreement : share of the prompts sent to an expert of least loss
    gap_closed : (best single's loss - loss) / (best single's loss - oracle's); 1 for the oracle,
        0 for the best single expert, None where these two do not differ
    """

    loss: float
    regret: float
    agreement: float
    gap_closed: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return plain data for JSON."""
        return asdict(self)


def choice_figures(share_NK: Float, losses_NK: Float, *, best_single: int) -> ChoiceFigures:
    """Return the figures of sending each prompt to experts with these probabilities.

    ``best_single`` is the column that was best in training.
    """
    least_N1 = losses_NK.min(axis=1, keepdims=True)
    loss = float((share_NK * losses_NK).sum(axis=1).mean())
    oracle = float(least_N1.mean())
    single = float(losses_NK[:, best_single].mean())
    return ChoiceFigures(
        loss=loss,
        regret=loss - oracle,
        agreement=float((share_NK * (losses_NK <= least_N1)).sum(axis=1).mean()),
        gap_closed=(single - loss) / (single - oracle) if single > oracle else None,
    )


def one_hot(choice: Ints, num_experts: int) -> Float64:
    """Return a certain choice as probabilities, (N,) -> (N, K)."""
    return np.eye(num_experts)[choice]


def excess_over_mixing(
    point_measure: Float, point_loss: Float, expert_measure: Float, expert_loss: Float
) -> Float64:
    """Return by how much points lose to choosing between two experts by chance, shape (P,).

    A point (mean parameters, mean loss) is compared with the least loss that any two experts
    reach in expectation at the same mean or below; negative values are better than every mixture.
    Points must not be left of the smallest expert.
    """
    hull = upper_hull(expert_measure, -expert_loss)
    # A mean over prompts of the smallest size may fall below it by rounding.
    measure = np.maximum(point_measure, hull.cost[0])
    return np.asarray(point_loss + hull_quality_at(hull, measure), dtype=np.float64)
