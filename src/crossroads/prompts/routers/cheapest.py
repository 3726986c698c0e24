"""Always the model with the lowest mean cost on the training prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet


@dataclass(kw_only=True)
class Cheapest(PromptRouter):
    """Estimates quality as 1 - cost / dearest cost, so that argmax is the cheapest model.

    Without any known cost all models are equal and the first one is taken.
    """

    name = "cheapest"
    summary = "always the model that cost least in training"
    needs_embeddings = False
    method = "none"
    needs = "mean costs"
    adding_a_model = "free"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        cost_K = data.mean_costs()
        self._estimate = 1.0 - cost_K / max(float(cost_K.max()), np.finfo(np.float64).tiny)

    def _predict(self, queries: Queries) -> npt.NDArray[np.float64]:
        return np.tile(self._estimate, (len(queries), 1))

    def _state(self) -> Arrays:
        return {"estimate": self._estimate}

    def _restore(self, arrays: Arrays) -> None:
        self._estimate = arrays["estimate"]
