"""What the two routers of IRT-Router (2025, arXiv 2506.01048) share: training, scaling, state.

They differ in the logit of "model k is right on x", its gradient and its start.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from crossroads.prompts.calibration import ScaledLogits, train_scaled
from crossroads.prompts.gradient import Parameters
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]

_BLOCK = 1024  # prompts at a time: bounds what is held for all models at once


class ItemResponse(PromptRouter):
    """Logits of a frozen embedding, learned by Adam, scaled on held-out prompts.

    Attributes
    ----------
    array_names : of the parameters, in the order of ``start``
    epochs, rate, decay : settings of the subclass, of Adam
    """

    array_names: ClassVar[tuple[str, ...]]
    adding_a_model = "few examples"

    epochs: int
    rate: float
    decay: float

    @abstractmethod
    def start(self, data: TrainingSet, rng: np.random.Generator) -> list[Float]:
        """Return the parameters before training."""

    @staticmethod
    @abstractmethod
    def logits(p: list[Any], x_ND: Float) -> Float:
        """Return the logits, shape (N, K)."""

    @staticmethod
    @abstractmethod
    def gradient(p: Parameters, x_ND: Float, y_NK: Float, known_NK: Float) -> Parameters:
        """Return the gradient of the mean log loss of a batch; unknown cells have none."""

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        x = data.embeddings.astype(np.float32)
        known_NK = np.isfinite(data.scores).astype(np.float32)
        y_NK = np.where(known_NK > 0, data.scores, 0.0).astype(np.float32)
        found, self._scale = train_scaled(
            data,
            lambda: [part.astype(np.float32) for part in self.start(data, rng)],
            lambda p, rows: self.logits(p, x[rows]),
            lambda p, rows: self.gradient(p, x[rows], y_NK[rows], known_NK[rows]),
            rng,
            rate=self.rate,
            decay=self.decay,
            epochs=self.epochs,
        )
        self._parts = [part.astype(np.float64) for part in found]

    def _predict(self, queries: Queries) -> Float64:
        x = queries.embeddings.astype(np.float64)
        blocks = [self.logits(self._parts, x[i : i + _BLOCK]) for i in range(0, len(x), _BLOCK)]
        return self._scale(np.concatenate([np.zeros((0, len(self.models))), *blocks]))

    def _state(self) -> Arrays:
        return {**dict(zip(self.array_names, self._parts, strict=True)), **self._scale.state()}

    def _restore(self, arrays: Arrays) -> None:
        self._parts = [arrays[name] for name in self.array_names]
        self._scale = ScaledLogits.restore(arrays)
