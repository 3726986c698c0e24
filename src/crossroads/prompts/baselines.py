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


BASELINES = ("best-single", "cheapest", "random", "oracle", "oracle-chance-aware")


def baseline_names(table: OutcomeTable, *, is_priced: bool) -> tuple[str, ...]:
    """Return those of BASELINES that a table allows; they are always run.

    Without prices no model is the cheapest; the chance-aware bound needs a ``chance`` column.
    """
    allowed = {"cheapest": is_priced, "oracle-chance-aware": table.chance is not None}
    return tuple(name for name in BASELINES if allowed.get(name, True))


@dataclass(frozen=True, kw_only=True)
class SingleModels:
    """Each of the K models answering every judged prompt: mean score, mean cost of a call."""

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
