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
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.bandit import LinearArms
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class ThompsonSampling(PromptRouter):
    """Posterior draws of linear rewards; estimates are theta_k . z.

    Parameters
    ----------
    spread : standard deviation of the draws, in widths, >= 0
    components : principal axes of the embedding that are used, >= 1
    penalty : of the ridge regressions, > 0
    """

    name = "thompson"
    summary = "contextual bandit: posterior draws of linear rewards"
    method = "reinforcement learning"
    needs = "bandit feedback"
    adding_a_model = "few examples"

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

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._arms = LinearArms.start(
            data.embeddings, len(self.models), components=self.components, penalty=self.penalty
        )
        self._arms.replay(data, lambda e, w: self._draw(e, w, rng), rng)
        self._weights = self._arms.weights()

    def _draw(self, expected_K: Float64, width_K: Float64, rng: np.random.Generator) -> Float64:
        return expected_K + self.spread * width_K * rng.standard_normal(len(width_K))

    def choose(self, embedding_D: Float, rng: np.random.Generator) -> str:
        """Return the model to ask online, exploring; then ``update`` with what came of it.

        Raises InputError for an embedding of another length.
        """
        expected_K, width_K = self._arms.judge(self._arms.one(embedding_D))
        return self.models[int(self._draw(expected_K, width_K, rng).argmax())]

    def update(self, embedding_D: Float, model: str, reward: float) -> None:
        """Learn from the reward in [0, 1] of one answer; later estimates include it.

        Raises UsageError for a model the router does not know, InputError for an embedding of
        another length or a reward out of range.
        """
        self._arms.feed(self.models, embedding_D, model, reward)
        self._weights = self._arms.weights()

    def _predict(self, queries: Queries) -> Float64:
        return np.asarray(self._arms.features(queries.embeddings) @ self._weights.T)

    def _state(self) -> Arrays:
        return self._arms.state()

    def _restore(self, arrays: Arrays) -> None:
        self._arms = LinearArms.restore(arrays)
        self._weights = self._arms.weights()
