"""Rank the models in each cluster of prompts; the nearest clusters of a prompt vote by rank.

The Avengers (2025, arXiv 2505.19797): k-means with 64 centres on unit embeddings, the models ranked
by their mean score in each, and for a query

    score_m = sum over the 11 nearest centres c of p_c / (rank_cm + 0.1),
    p = softmax(-beta * cosine distance), beta = 3, the first rank 0.

Scores order the models and are no quality: a decision rule other than ``argmax`` weighs them
against cost at its own risk; ``clusters`` is the same method with calibrated means in place of
ranks. Differences: the vote over several answers of the chosen models, the paper's second half, is
none of a router's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.routers.clusters import Clusters

Float64 = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Avengers(PromptRouter):
    """Score of model m = sum over the nearest centres c of p_c / (rank_cm + 0.1).

    Parameters
    ----------
    num_clusters : centres, >= 1; fewer where there are fewer distinct prompts
    nearest : centres that vote, >= 1
    beta : sharpness of their weights, >= 0
    """

    name = "avengers"
    summary = "models ranked in clusters of prompts; the nearest clusters vote"
    method = "similarity-based"
    adding_a_model = "few examples"

    num_clusters: int = 64
    nearest: int = 11
    beta: float = 3.0

    def __post_init__(self) -> None:
        if min(self.num_clusters, self.nearest) < 1 or not 0 <= self.beta < np.inf:
            raise UsageError(
                "router 'avengers': expected num_clusters >= 1, nearest >= 1 and beta >= 0, got "
                f"{self.settings!r}"
            )

    def _ranks(self) -> Clusters:
        # Unshrunk: the published ranking is by the plain mean score in the cluster.
        return Clusters(**self.settings, estimate="rank", shrink=0.0)

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._clusters = self._ranks()
        self._clusters._fit(data, rng)

    def _predict(self, queries: Queries) -> Float64:
        return self._clusters._predict(queries)

    def _state(self) -> Arrays:
        return self._clusters._state()

    def _restore(self, arrays: Arrays) -> None:
        self._clusters = self._ranks()
        self._clusters._restore(arrays)
