"""Cluster the training prompts, rank the models in each cluster, ask the nearest clusters.

After Avengers (2025): L2-normalised embeddings, k-means with 64 centres, the 11 nearest centres of
a query weighted by softmax(-beta * cosine distance), beta = 3. Published, a model's score is
sum_c p_c / (rank_cm + 0.1); that ranks models but estimates no quality, so it is the setting
``estimate=rank``. The default averages the models' shrunk mean scores in those clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.clustering import kmeans, squared_distances
from crossroads.prompts.regression import softmax
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float64 = npt.NDArray[np.float64]

ESTIMATES = ("mean", "rank")
_RANK_OFFSET = 0.1  # of Avengers: the first rank of a cluster is 0


@dataclass(kw_only=True)
class Clusters(PromptRouter):
    """Quality of model m = sum over the nearest centres c of p_c a_cm (see the module).

    Parameters
    ----------
    num_clusters : centres, >= 1; fewer where there are fewer distinct prompts
    nearest : centres that are asked, >= 1
    beta : sharpness of their weights, >= 0
    estimate : ``mean`` or ``rank``
    shrink : weight of a model's overall mean in a cluster, in prompts, >= 0
    """

    name = "clusters"
    summary = "mean outcomes in the nearest clusters of prompts"
    method = "similarity-based"
    adding_a_model = "few examples"

    num_clusters: int = 64
    nearest: int = 11
    beta: float = 3.0
    estimate: str = "mean"
    shrink: float = 10.0

    def __post_init__(self) -> None:
        if self.estimate not in ESTIMATES:
            raise unknown_name("estimate of router 'clusters':", self.estimate, ESTIMATES)
        is_usable = all(0 <= value < np.inf for value in (self.beta, self.shrink))
        if min(self.num_clusters, self.nearest) < 1 or not is_usable:
            raise UsageError(
                "router 'clusters': expected num_clusters and nearest >= 1, beta and shrink >= 0, "
                f"got {self.settings}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        unit = _unit_rows(data.embeddings)
        centres = kmeans(unit, self.num_clusters, rng)
        owner_N = squared_distances(unit, centres).argmin(axis=1)
        is_in_CN = (owner_N == np.arange(len(centres))[:, None]).astype(np.float64)
        known_NK = np.isfinite(data.scores)
        total_CK = is_in_CN @ np.where(known_NK, data.scores, 0.0)
        shrink = max(self.shrink, 1e-9)
        mean_CK = (total_CK + shrink * data.mean_scores()) / (is_in_CN @ known_NK + shrink)
        self._centres = _unit_rows(centres)
        self._worth = mean_CK
        if self.estimate == "rank":
            rank_CK = np.argsort(np.argsort(-mean_CK, axis=1, kind="stable"), axis=1)
            self._worth = 1.0 / (rank_CK + _RANK_OFFSET)

    def _predict(self, queries: Queries) -> Float64:
        distance = 1.0 - _unit_rows(queries.embeddings) @ self._centres.T
        kept = min(self.nearest, distance.shape[1])
        last = np.partition(distance, kept - 1, axis=1)[:, kept - 1 : kept]
        # Centres level with the last one take part too: rounding does not choose between them.
        asked = np.where(distance <= last + 1e-9, -self.beta * distance, -np.inf)
        return np.asarray(softmax(asked) @ self._worth)

    def _state(self) -> Arrays:
        return {"centres": self._centres, "worth": self._worth}

    def _restore(self, arrays: Arrays) -> None:
        self._centres, self._worth = arrays["centres"], arrays["worth"]


def _unit_rows(rows_ND: npt.NDArray[np.floating]) -> Float64:
    rows = np.asarray(rows_ND, dtype=np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
