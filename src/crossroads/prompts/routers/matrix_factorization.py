"""Bilinear in a learned vector for each model and a projection of the prompt's embedding.

RouteLLM's ``mf`` (Ong et al. 2024): delta(m, q) = w . (v_m * (P e_q)), trained on preferences
between two models. Here the outcomes themselves are the targets, sigmoid(delta + b_m), so that any
number of models is estimated; w is part of v_m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.descent import Parameters, Rows, adam
from crossroads.prompts.regression import sigmoid
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class MatrixFactorization(PromptRouter):
    """Quality of model m = sigmoid((e - mean embedding) P v_m + b_m).

    Parameters
    ----------
    rank : length of the model vectors, >= 1
    rate : Adam's step, > 0
    weight_decay : decoupled, >= 0
    """

    name = "matrix-factorization"
    summary = "low-rank product of prompt and model vectors"

    rank: int = 16
    rate: float = 3e-3
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.rate > 0 or not self.weight_decay >= 0:
            raise UsageError(
                "router 'matrix-factorization': expected rank >= 1, rate > 0 and weight_decay >= 0,"
                f" got {self.settings}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        mean_K = np.clip(data.mean_scores(), 1e-3, 1 - 1e-3)
        self._bias = np.log(mean_K / (1 - mean_K))  # starts, and falls back to, the means
        self._offset = data.embeddings.mean(axis=0)
        x_ND = data.embeddings - self._offset
        known_NK = np.isfinite(data.scores)
        y_NK = np.where(known_NK, data.scores, 0.0).astype(np.float32)
        shape = (x_ND.shape[1], self.rank)
        start: Parameters = {
            "projection": rng.normal(0, 1.0, shape).astype(np.float32),
            "models": np.zeros((self.rank, y_NK.shape[1]), dtype=np.float32),
        }

        def logit(p: Parameters, rows: Rows) -> Float32:
            return np.asarray(x_ND[rows] @ p["projection"] @ p["models"] + self._bias)

        def gradient(p: Parameters, rows: Rows) -> dict[str, npt.NDArray[np.float64]]:
            error = (sigmoid(logit(p, rows)) - y_NK[rows]) * known_NK[rows] / len(rows)
            x = x_ND[rows]
            return {
                "projection": x.T @ (error @ p["models"].T),
                "models": (x @ p["projection"]).T @ error,
            }

        def loss(p: Parameters, rows: Rows) -> float:
            z, y = logit(p, rows), y_NK[rows]
            return float(((np.logaddexp(0, z) - y * z) * known_NK[rows]).sum() / len(rows))

        found = adam(
            start,
            gradient,
            loss,
            len(data),
            rng,
            rate=self.rate,
            weight_decay=self.weight_decay,
        )
        self._projection, self._models = found["projection"], found["models"]

    def _predict(self, queries: Queries) -> Float64:
        vector_NR = (queries.embeddings - self._offset) @ self._projection
        return sigmoid(vector_NR @ self._models + self._bias)

    def _state(self) -> Arrays:
        return {
            "projection": self._projection,
            "models": self._models,
            "bias": self._bias,
            "offset": self._offset,
        }

    def _restore(self, arrays: Arrays) -> None:
        self._projection, self._models = arrays["projection"], arrays["models"]
        self._bias, self._offset = arrays["bias"], arrays["offset"]
