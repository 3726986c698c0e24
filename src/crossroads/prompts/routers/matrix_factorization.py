"""A vector for each model, a projection of the prompt: their product says who is right.

RouteLLM's matrix factorization router (2024, arXiv 2406.18665) scores a model by a bilinear
function of model and prompt vectors, learned from preferences by logistic loss:

    P(model k is right on x) = sigmoid(bias_k + v_k . (U^T x))

Differences: learned from outcomes of all models instead of pairwise votes, so K > 2 needs no
pairs; the paper's final layer is absorbed in v. Model vectors start at zero: the untrained router
knows the model means only. Stops early on the contrasts between models on
held-out prompts, all that routing needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.gradient import Parameters, adam, hold_out
from crossroads.prompts.regression import sigmoid
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import contrasts

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_EXTREME = 1e-3  # a mean score this near 0 or 1 is not taken as certainty


@dataclass(kw_only=True)
class MatrixFactorization(PromptRouter):
    """Low-rank bilinear logistic model.

    Parameters
    ----------
    rank : length of model vectors, >= 1
    epochs : most passes over the training prompts, >= 0
    rate, decay, batch : of Adam
    """

    name = "matrix-factorization"
    summary = "model vectors times a projection of the prompt"
    adding_a_model = "few examples"

    rank: int = 16
    epochs: int = 30
    rate: float = 1e-3
    decay: float = 1.0
    batch: int = 128

    def __post_init__(self) -> None:
        if (
            min(self.rank, self.batch) < 1
            or self.epochs < 0
            or not 0 < self.rate < np.inf
            or not 0 <= self.decay < np.inf
        ):
            raise UsageError(
                "router 'matrix-factorization': expected rank >= 1, batch >= 1, epochs >= 0, "
                f"rate > 0 and decay >= 0, got {self.settings!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        vars(self).pop("_product", None)
        mean_K = np.clip(data.mean_scores(), _EXTREME, 1.0 - _EXTREME)
        centre_D = data.embeddings.mean(axis=0, dtype=np.float64)
        x = (data.embeddings - centre_D).astype(np.float32)
        known_NK = np.isfinite(data.scores)
        y = np.where(known_NK, data.scores, 0.0).astype(np.float32)
        known = known_NK.astype(np.float32)
        dim = x.shape[1]
        start = [
            rng.standard_normal((dim, self.rank)).astype(np.float32),
            np.zeros((self.rank, y.shape[1]), dtype=np.float32),
            np.log(mean_K / (1.0 - mean_K)).astype(np.float32),
        ]
        train, valid = hold_out(data.embeddings, 0.15, rng)

        def gradient(p: Parameters, rows: Ints) -> Parameters:
            return _gradient(p, x[rows], y[rows], known[rows])

        held_out = contrasts(data.scores[valid] - mean_K)

        def loss(p: Parameters) -> float:
            found = contrasts(sigmoid(_logit(p, x[valid])) - mean_K)
            return float(np.square((found - held_out) * known[valid]).sum())

        projection, vectors, bias = adam(
            start,
            gradient,
            loss,
            train,
            rng,
            rate=self.rate,
            decay=self.decay,
            batch=self.batch,
            epochs=self.epochs,
        )
        self._projection, self._vectors = projection.astype(np.float64), vectors.astype(np.float64)
        self._bias = bias - centre_D @ self._projection @ self._vectors

    @cached_property
    def _product(self) -> tuple[Float32, Float32]:
        """Half of U V, shape (D, K), and of the bias: one product a decision instead of two."""
        product = 0.5 * (self._projection @ self._vectors)
        return product.astype(np.float32), (0.5 * self._bias).astype(np.float32)

    def _predict(self, queries: Queries) -> Float32:
        product_DK, bias_K = self._product
        # sigmoid(z) = (1 + tanh(z / 2)) / 2, in place: a decision takes a few microseconds.
        estimate = queries.embeddings @ product_DK
        estimate += bias_K
        np.tanh(estimate, out=estimate)
        estimate += 1.0
        estimate *= 0.5
        return estimate

    def _state(self) -> Arrays:
        return {"projection": self._projection, "vectors": self._vectors, "bias": self._bias}

    def _restore(self, arrays: Arrays) -> None:
        self._projection, self._vectors = arrays["projection"], arrays["vectors"]
        self._bias = arrays["bias"]


def _logit(p: Parameters, x: Float32) -> Float32:
    return np.asarray(x @ p[0] @ p[1] + p[2], dtype=np.float32)


def _gradient(p: Parameters, x: Float32, y: Float32, known: Float32) -> Parameters:
    """Gradient of the mean log loss over the batch; unknown cells have none."""
    projected = x @ p[0]
    logit = projected @ p[1] + p[2]
    slope = ((sigmoid(logit) - y) * known / len(x)).astype(np.float32)
    return [x.T @ (slope @ p[1].T), projected.T @ slope, slope.sum(axis=0)]
