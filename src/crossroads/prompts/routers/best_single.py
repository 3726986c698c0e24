"""Always the model with the highest mean score on the training prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet


@dataclass(kw_only=True)
class BestSingle(PromptRouter):
    """Estimates every prompt by the model means, so that argmax is the best single model.

    Swept over prices it gives the single models on their own hull: what needs no router.
    """

    name = "best-single"
    summary = "always the model that was best in training"
    needs_embeddings = False
    method = "none"
    needs = "mean scores"
    adding_a_model = "few examples"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._means = data.mean_scores()

    def _predict(self, queries: Queries) -> npt.NDArray[np.float64]:
        return np.tile(self._means, (len(queries), 1))

    def _state(self) -> Arrays:
        return {"means": self._means}

    def _restore(self, arrays: Arrays) -> None:
        self._means = arrays["means"]
