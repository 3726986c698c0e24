"""One logistic regression a model: the probability that it answers the prompt right."""

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
    """Quality of model m = sigmoid(e w_m + b_m), scores in [0, 1] as soft targets.

    Parameters
    ----------
    penalty : weight of |w_m|^2 / 2 against the summed log loss on unit-length embeddings, > 0
    """

    name = "logistic"
    summary = "probability of a right answer, one logistic regression a model"

    penalty: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.penalty < np.inf:
            raise UsageError(f"router 'logistic': expected penalty > 0, got {self.penalty!r}")

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._weights = logistic_regressions(data.embeddings, data.scores, penalty=self.penalty)

    def _predict(self, queries: Queries) -> Float64:
        return sigmoid(queries.embeddings @ self._weights[:-1] + self._weights[-1])

    def _state(self) -> Arrays:
        return {"weights": self._weights}

    def _restore(self, arrays: Arrays) -> None:
        self._weights = arrays["weights"]
