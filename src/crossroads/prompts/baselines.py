"""What every router is held against: the trivial routers, the bounds, and the single models.

The single models alone already offer a trade-off: send each prompt to one of two models at random.
Their hull is RouterBench's "zero router"; a router is useful only above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.preference import Hull, upper_hull
from crossroads.prompts.outcomes import OutcomeTable

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]


def baseline_names(table: OutcomeTable) -> tuple[str, ...]:
    """Return the routers that are always run; the chance-aware bound needs a ``chance`` column."""
    always = ("best-single", "cheapest", "random", "oracle")
    return always if table.chance is None else (*always, "oracle-chance-aware")


@dataclass(frozen=True, kw_only=True)
class SingleModels:
    """Each of the K models answering every judged prompt: mean score, mean cost in USD a call."""

    quality: Float64  # (K,)
    cost: Float64  # (K,)

    @classmethod
    def of(cls, score_NK: Float, cost_NK: Float) -> SingleModels:
        """Judge the single models; both arguments without NaN."""
        return cls(
            quality=score_NK.mean(axis=0, dtype=np.float64), cost=np.asarray(cost_NK.mean(axis=0))
        )

    @property
    def cost_range(self) -> tuple[float, float]:
        """The costs of the cheapest and of the dearest model."""
        return float(self.cost.min()), float(self.cost.max())

    @property
    def hull(self) -> Hull:
        """The random mix of single models at each cost."""
        return upper_hull(self.cost, self.quality)
