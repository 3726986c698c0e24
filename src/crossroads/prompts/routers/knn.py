"""Mean outcome of the most similar training prompts, by cosine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

WEIGHTINGS = ("triangular", "uniform")
_LEVEL = 1e-5  # similarities closer than this are equal: float32 sums differ by order
_BLOCK = 1024  # queries at a time: bounds the similarities held in memory


@dataclass(kw_only=True)
class NearestNeighbours(PromptRouter):
    """Quality of model m = (sum_i w_i s_im + shrink mean_m) / (sum_i w_i + shrink).

    i runs over the k nearest training prompts on which m was run. ``triangular`` weights a
    neighbour by its similarity less that of the neighbour k + 1, scaled so that the nearest weighs
    1: no jump when a neighbour enters or leaves. ``uniform`` weights all k alike, and every prompt
    level with the last of them too.

    Parameters
    ----------
    k : neighbours, >= 1
    weighting : ``triangular`` or ``uniform``
    shrink : weight of the model's overall mean, in neighbours, >= 0
    """

    name = "knn"
    summary = "outcomes of the most similar training prompts"
    method = "similarity-based"
    adding_a_model = "few examples"

    k: int = 100
    weighting: str = "triangular"
    shrink: float = 10.0

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise unknown_name("weighting of router 'knn':", self.weighting, WEIGHTINGS)
        if self.k < 1 or not 0 <= self.shrink < np.inf:
            raise UsageError(
                f"router 'knn': expected k >= 1 and shrink >= 0, got k={self.k!r} and "
                f"shrink={self.shrink!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._embeddings = np.array(data.embeddings, dtype=np.float32, order="C")
        self._set_scores(data.scores.copy(), data.mean_scores())

    def _set_scores(self, score_NK: Float32, mean_K: Float64) -> None:
        self._scores, self._mean = score_NK, mean_K
        self._known = np.isfinite(score_NK).astype(np.float32)
        self._filled = np.where(np.isfinite(score_NK), score_NK, np.float32(0))

    def _predict(self, queries: Queries) -> Float64:
        blocks = range(0, len(queries), _BLOCK)
        estimates = [self._estimate(queries.embeddings[i : i + _BLOCK]) for i in blocks]
        return np.concatenate(estimates) if estimates else np.zeros((0, len(self.models)))

    def _estimate(self, query_QD: Float32) -> Float64:
        similarity = query_QD @ self._embeddings.T
        num_rows = similarity.shape[1]
        kept = min(self.k + 1, num_rows)
        # Candidates in training order, so that sums do not depend on how they were found.
        nearest = np.sort(np.argpartition(similarity, num_rows - kept)[:, num_rows - kept :])
        near = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        if self.weighting == "triangular":
            weight = self._triangular(near)
            if np.all(weight.sum(axis=1) > 0):
                return self._average(weight, nearest)
        # Level with the last neighbour there may be more prompts than the candidates.
        last = -np.sort(-near, axis=1)[:, min(self.k, near.shape[1]) - 1]
        everyone = (similarity >= last[:, None] - _LEVEL).astype(np.float64)
        uniform = self._mix(everyone @ self._filled, everyone @ self._known)
        if self.weighting == "uniform":
            return uniform
        is_weighed = weight.sum(axis=1) > 0
        return np.where(is_weighed[:, None], self._average(weight, nearest), uniform)

    def _triangular(self, near_Qk: Float64) -> Float64:
        lowest = near_Qk.min(axis=1, keepdims=True)
        if near_Qk.shape[1] <= self.k:  # everybody is a neighbour: nobody bounds the triangle
            lowest = np.minimum(lowest, -1.0)
        height = near_Qk.max(axis=1, keepdims=True) - lowest
        weight = (near_Qk - lowest) / np.maximum(height, _LEVEL)
        return np.where(height > _LEVEL, weight, 0.0)

    def _average(self, weight_Qk: Float64, nearest_Qk: npt.NDArray[np.intp]) -> Float64:
        total = np.einsum("qk,qkm->qm", weight_Qk, self._filled[nearest_Qk])
        return self._mix(total, np.einsum("qk,qkm->qm", weight_Qk, self._known[nearest_Qk]))

    def _mix(self, total_QK: Float64, weight_QK: Float64) -> Float64:
        """Shrink weighted sums to the model means, which also stand where nothing is known."""
        shrink = max(self.shrink, 1e-9)
        return np.asarray((total_QK + shrink * self._mean) / (weight_QK + shrink))

    def _state(self) -> Arrays:
        return {"embeddings": self._embeddings, "scores": self._scores, "mean": self._mean}

    def _restore(self, arrays: Arrays) -> None:
        self._embeddings = arrays["embeddings"]
        self._set_scores(arrays["scores"], arrays["mean"])
