"""Difficulty as it shows: how large a share of a panel of models solves a prompt.

The published data set labels its rows this way but not its cut-offs; those here are ours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError

LEVELS = ("easy", "medium", "hard")


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOffs:
    """Solve rates r that part the levels: easy from ``easy`` up, hard from ``hard`` down.

    A model solves a prompt when its score reaches ``solved``.
    """

    easy: float = 2 / 3
    hard: float = 1 / 3
    solved: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.hard < self.easy <= 1 and 0 < self.solved <= 1):
            raise InputError(
                "difficulty: expected 0 <= hard < easy <= 1 and 0 < solved <= 1, got "
                f"hard {self.hard}, easy {self.easy}, solved {self.solved}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, to be kept beside the labels."""
        return asdict(self)


def solve_rates(
    score_NK: npt.NDArray[np.floating[Any]], cut_offs: CutOffs | None = None
) -> npt.NDArray[np.float64]:
    """Return the share of models that solve each prompt, shape (N,); NaN where none was run."""
    cut = cut_offs or CutOffs()
    run_N = np.isfinite(score_NK).sum(axis=1)
    # Scores may be stored in single precision.
    solved_N = (np.nan_to_num(score_NK, nan=-1.0) >= cut.solved - 1e-6).sum(axis=1)
    return np.where(run_N > 0, solved_N / np.maximum(run_N, 1), np.nan)


def difficulty_levels(
    score_NK: npt.NDArray[np.floating[Any]], cut_offs: CutOffs | None = None
) -> list[str]:
    """Return ``easy``, ``medium`` or ``hard`` for each of N prompts, empty where none was run.

    ``score_NK`` holds a panel's scores in [0, 1], NaN where a model was not run.
    """
    cut = cut_offs or CutOffs()
    levels = []
    for rate in solve_rates(score_NK, cut):
        if np.isnan(rate):
            levels.append("")
        elif rate >= cut.easy - 1e-9:
            levels.append("easy")
        else:
            levels.append("hard" if rate <= cut.hard + 1e-9 else "medium")
    return levels
