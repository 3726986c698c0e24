"""RouterArena: the arena score recomputed from published accuracy and cost."""

from __future__ import annotations

import numpy as np

from crossroads.core.catalog import Outcome, Verdict
from crossroads.prompts.metrics import arena_score

# RouterArena's public leaderboard of August 2026: accuracy in %, USD per 1,000 queries, score in %.
LEADERBOARD = (
    (79.69, 0.27, 77.63),
    (79.76, 0.70, 76.21),
    (78.59, 0.48, 75.85),
    (78.14, 0.40, 75.75),
    (75.34, 0.08, 75.17),
    (74.72, 0.13, 74.13),
    (75.01, 0.68, 72.29),
    (71.23, 0.06, 71.60),
    (72.94, 0.73, 70.42),
    (66.88, 0.15, 66.89),
    (73.96, 10.02, 64.32),
    (61.62, 4.83, 57.56),
    (58.69, 4.27, 55.48),
)
# The board rounds accuracy to 0.01 % and cost to 0.01 USD; that alone moves a score by this much.
TOLERANCE_POINTS = 0.06


def verify(full: bool) -> Verdict:
    """Recompute the arena score of the public leaderboard.

    Nothing is fitted and nothing is random, so the long run is the short one.
    """
    del full
    ours = [100 * arena_score(accuracy / 100, cost) for accuracy, cost, _ in LEADERBOARD]
    published = [score for _, _, score in LEADERBOARD]
    error = np.abs(np.subtract(ours, published))
    verdict: Outcome = "holds" if error.max() <= TOLERANCE_POINTS else "fails"
    return Verdict(
        name="routerarena",
        verdict=verdict,
        paper={"scores": published, "tolerance_points": TOLERANCE_POINTS},
        measured={
            "scores": [round(score, 3) for score in ours],
            "largest_error_points": round(float(error.max()), 4),
            "median_error_points": round(float(np.median(error)), 4),
        },
        data=f"{len(LEADERBOARD)} rows of the public RouterArena leaderboard",
    )
