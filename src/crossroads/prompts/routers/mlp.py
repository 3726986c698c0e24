"""A small neural network from embedding to every model's score, as a residual of its mean.

Tryage (2023, arXiv 2308.11601): a perceptive router predicts each expert's loss. Here a frozen
embedding and one hidden layer take the place of the paper's fine-tuned encoder; targets are
standardised for each model and the last layer starts at zero, so that before any learning the
router is the best single model. Training stops when the contrasts between models on held-out
prompts, all that routing needs, get no better; what was learned of them is then shrunk to the share
that those prompts confirm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.gradient import Parameters, adam, hold_out
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import contrasts

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(kw_only=True)
class Perceptron(PromptRouter):
    """One hidden layer of rectified units.

    Parameters
    ----------
    hidden : units, >= 1
    epochs : most passes over the training prompts, >= 0
    rate, decay, batch : of Adam
    """

    name = "mlp"
    summary = "small neural network on the embedding"

    hidden: int = 128
    epochs: int = 30
    rate: float = 3e-4
    decay: float = 1.0
    batch: int = 128

    def __post_init__(self) -> None:
        if (
            min(self.hidden, self.batch) < 1
            or self.epochs < 0
            or not 0 < self.rate < np.inf
            or not 0 <= self.decay < np.inf
        ):
            raise UsageError(
                "router 'mlp': expected hidden >= 1, batch >= 1, epochs >= 0, rate > 0 "
                "and decay >= 0, got "
                f"{self.settings!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._mean = data.mean_scores()
        known_NK = np.isfinite(data.scores)
        deviation = np.where(known_NK, data.scores - self._mean, 0.0)
        spread = np.sqrt(np.square(deviation).sum(axis=0) / known_NK.sum(axis=0))
        self._spread = np.where(spread > 1e-6, spread, 1.0)
        self._centre = data.embeddings.mean(axis=0, dtype=np.float64)
        # Unit vectors have tiny coordinates: scaled to about one, so that Adam's steps fit.
        typical = float(np.sqrt(np.square(data.embeddings - self._centre).mean()))
        self._scale = 1.0 / typical if typical > 1e-9 else 1.0
        x = ((data.embeddings - self._centre) * self._scale).astype(np.float32)
        y = (deviation / self._spread).astype(np.float32)
        known = known_NK.astype(np.float32)
        dim, num_models = x.shape[1], y.shape[1]
        start = [
            (rng.standard_normal((dim, self.hidden)) * np.sqrt(2.0 / dim)).astype(np.float32),
            np.zeros(self.hidden, dtype=np.float32),
            np.zeros((self.hidden, num_models), dtype=np.float32),
        ]
        train, valid = hold_out(data.embeddings, 0.15, rng)

        def gradient(p: Parameters, rows: Ints) -> Parameters:
            return _gradient(p, x[rows], y[rows], known[rows])

        held_out = contrasts(data.scores[valid] - self._mean)

        def contrast(p: Parameters) -> Float64:
            return contrasts(_forward(p, x[valid])[1] * self._spread)

        def loss(p: Parameters) -> float:
            return float(np.square((contrast(p) - held_out) * known[valid]).sum())

        self._layers = adam(
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
        found = contrast(self._layers) * known[valid]
        confirmed = float((found * held_out).sum() / max(np.square(found).sum(), 1e-12))
        self._share = min(max(confirmed, 0.0), 1.0)

    def _predict(self, queries: Queries) -> Float64:
        x = (queries.embeddings - self._centre) * self._scale
        w1, b1, w2 = (layer.astype(np.float64) for layer in self._layers)
        deviation_NK = np.maximum(x @ w1 + b1, 0.0) @ w2 * self._spread
        common_N1 = deviation_NK.mean(axis=1, keepdims=True)
        return np.asarray(self._mean + common_N1 + self._share * (deviation_NK - common_N1))

    def _state(self) -> Arrays:
        layers = {f"layer{n}": layer for n, layer in enumerate(self._layers)}
        return {
            "mean": self._mean,
            "spread": self._spread,
            "centre": self._centre,
            "scale": np.array(self._scale),
            "share": np.array(self._share),
            **layers,
        }

    def _restore(self, arrays: Arrays) -> None:
        self._mean, self._spread = arrays["mean"], arrays["spread"]
        self._centre, self._scale = arrays["centre"], float(arrays["scale"])
        self._share = float(arrays["share"])
        self._layers = [arrays[f"layer{n}"] for n in range(3)]


def _forward(p: Parameters, x: Float32) -> tuple[Float32, Float32]:
    """Return hidden units and outputs."""
    hidden = np.maximum(x @ p[0] + p[1], 0.0)
    return hidden, hidden @ p[2]


def _gradient(p: Parameters, x: Float32, y: Float32, known: Float32) -> Parameters:
    """Gradient of half the mean squared error over the batch; unknown cells have none."""
    hidden, output = _forward(p, x)
    slope = (output - y) * known / np.float32(len(x))
    back = (slope @ p[2].T) * (hidden > 0)
    return [x.T @ back, back.sum(axis=0), hidden.T @ slope]
