"""Ask each model as often as it may be the best one; learn from its answer alone.

Thompson sampling with linear rewards (Agrawal and Goyal, ICML 2013, arXiv 1209.3352). With the
ridge regression theta_k, A_k of the rewards model k got so far (``crossroads.prompts.bandit``),
prompt z goes to the argmax over k of a draw from

    Normal(theta_k . z, spread^2 z^T A_k^-1 z)

It learns from bandit feedback: of each prompt it sees the score of the model it chose and no
other. ``fit`` simulates that on an outcome table, revealing one score a prompt in a random order;
estimates of quality are then those of the regressions, without exploration. ``choose`` and
``update`` go on learning online. Differences: arms have regressions of their own, so that drawing
rewards is drawing weights; z are principal axes of the embedding, found without outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.bandit import LinearBandit

Float64 = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class ThompsonSampling(LinearBandit):
    """Posterior draws of linear rewards; estimates are theta_k . z.

    Parameters
    ----------
    spread : standard deviation of the draws, in widths, >= 0
    components : principal axes of the embedding that are used, >= 1
    penalty : of the ridge regressions, > 0
    """

    name = "thompson"
    summary = "contextual bandit: posterior draws of linear rewards"

    spread: float = 0.2
    components: int = 8
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if (
            not 0 <= self.spread < np.inf
            or self.components < 1
            or not 1e-6 <= self.penalty < np.inf
        ):
            raise UsageError(
                "router 'thompson': expected spread >= 0, components >= 1 and penalty >= 0.000001, "
                f"got {self.settings!r}"
            )

    def index(
        self, expected_K: Float64, width_K: Float64, rng: np.random.Generator | None
    ) -> Float64:
        if rng is None:
            raise UsageError("router 'thompson' draws at random: give choose() a generator, rng=")
        return expected_K + self.spread * width_K * rng.standard_normal(len(width_K))
