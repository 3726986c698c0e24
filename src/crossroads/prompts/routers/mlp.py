"""A small network with one hidden layer: residual of each model's mean from the embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.descent import Parameters, Rows, adam
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float32 = npt.NDArray[np.float32]


@dataclass(kw_only=True)
class MultilayerPerceptron(PromptRouter):
    """Quality = means + relu((e - mean embedding) A + a) B; the last layer starts at zero.

    Trained on squared error by Adam; early stopping starts from, and can fall back to, the means.

    Parameters
    ----------
    hidden : units, >= 1
    rate : Adam's step, > 0
    weight_decay : decoupled, >= 0
    """

    name = "mlp"
    summary = "small network, residual from the model means"

    hidden: int = 64
    rate: float = 2e-3
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden < 1 or not self.rate > 0 or not self.weight_decay >= 0:
            raise UsageError(
                "router 'mlp': expected hidden >= 1, rate > 0 and weight_decay >= 0, got "
                f"{self.settings}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._mean = data.mean_scores().astype(np.float32)
        self._offset = data.embeddings.mean(axis=0)
        x_ND = data.embeddings - self._offset
        known_NK = np.isfinite(data.scores)
        y_NK = np.where(known_NK, data.scores - self._mean, 0.0).astype(np.float32)
        num_features, num_models = x_ND.shape[1], y_NK.shape[1]
        start: Parameters = {
            "hidden": rng.normal(0, np.sqrt(2.0), (num_features, self.hidden)).astype(np.float32),
            "bias": np.zeros(self.hidden, dtype=np.float32),
            "out": np.zeros((self.hidden, num_models), dtype=np.float32),
        }

        def gradient(p: Parameters, rows: Rows) -> Parameters:
            x, active = x_ND[rows], _active(p, x_ND[rows])
            error = (active @ p["out"] - y_NK[rows]) * known_NK[rows] * (2.0 / len(rows))
            back = (error @ p["out"].T) * (active > 0)
            return {"hidden": x.T @ back, "bias": back.sum(axis=0), "out": active.T @ error}

        def loss(p: Parameters, rows: Rows) -> float:
            error = (_active(p, x_ND[rows]) @ p["out"] - y_NK[rows]) * known_NK[rows]
            return float(np.square(error).sum() / len(rows))

        self._parameters = adam(
            start,
            gradient,
            loss,
            len(data),
            rng,
            rate=self.rate,
            weight_decay=self.weight_decay,
        )

    def _predict(self, queries: Queries) -> Float32:
        active = _active(self._parameters, queries.embeddings - self._offset)
        return np.asarray(self._mean + active @ self._parameters["out"])

    def _state(self) -> Arrays:
        return {"mean": self._mean, "offset": self._offset, **self._parameters}

    def _restore(self, arrays: Arrays) -> None:
        self._mean, self._offset = arrays["mean"], arrays["offset"]
        self._parameters = {name: arrays[name] for name in ("hidden", "bias", "out")}


def _active(p: Parameters, x_ND: Float32) -> Float32:
    return np.asarray(np.maximum(x_ND @ p["hidden"] + p["bias"], 0))
