"""Ask the model that might be best; learn from its answer alone.

LinUCB with disjoint arms (Li et al., WWW 2010, arXiv 1003.0146). With the ridge regression theta_k,
A_k of the rewards model k got so far (``crossroads.prompts.bandit``), prompt z goes to

    argmax_k theta_k . z + alpha sqrt(z^T A_k^-1 z)

It learns from bandit feedback: of each prompt it sees the score of the model it chose and no
other. ``fit`` simulates that on an outcome table, revealing one score a prompt in a random order;
estimates of quality are then those of the regressions, without exploration. ``choose`` and
``update`` go on learning online. Differences: z are principal axes of the embedding, found
without outcomes, since an arm of hundreds of features learns nothing from the few prompts it gets.
Axes and alpha are those that earned most in replays of training prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.bandit import LinearBandit

Float64 = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class LinUpperConfidence(LinearBandit):
    """Upper confidence bounds of linear rewards; estimates are theta_k . z.

    Parameters
    ----------
    alpha : how far the bound lies above the expected reward, >= 0
    components : principal axes of the embedding that are used, >= 1
    penalty : of the ridge regressions, > 0
    """

    name = "linucb"
    summary = "contextual bandit: optimism about linear rewards"

    alpha: float = 0.5
    components: int = 8
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < np.inf or self.components < 1 or not 1e-6 <= self.penalty < np.inf:
            raise UsageError(
                "router 'linucb': expected alpha >= 0, components >= 1 and penalty >= 0.000001, "
                f"got {self.settings!r}"
            )

    def index(
        self, expected_K: Float64, width_K: Float64, rng: np.random.Generator | None
    ) -> Float64:
        return expected_K + self.alpha * width_K
