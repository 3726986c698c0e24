"""Logistic regression of every model's success on the embedding.

The classifier of routers that predict "will this model be right" (survey arXiv 2502.00409). All
models share one design and are fitted together; graded scores in [0, 1] are taken as
probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.regression import logistic_regressions, sigmoid
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float64 = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Logistic(PromptRouter):
    """One logistic regression for each model.

    Parameters
    ----------
    penalty : of half the squared weights, on unit rows, > 0; more is closer to the model means
    """

    name = "logistic"
    summary = "probability that each model is right"

    penalty: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.penalty < np.inf:
            raise UsageError(f"router 'logistic': expected penalty > 0, got {self.penalty!r}")

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        weights = logistic_regressions(data.embeddings, data.scores, penalty=self.penalty)
        self._weights, self._bias = weights[:-1], weights[-1]

    def _predict(self, queries: Queries) -> Float64:
        return sigmoid(queries.embeddings.astype(np.float64) @ self._weights + self._bias)

    def _state(self) -> Arrays:
        return {"weights": self._weights, "bias": self._bias}

    def _restore(self, arrays: Arrays) -> None:
        self._weights, self._bias = arrays["weights"], arrays["bias"]
