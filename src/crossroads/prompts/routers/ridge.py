"""One ridge regression a model on the prompt's embedding, all solved at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.regression import ridge
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import grouped_folds

Float64 = npt.NDArray[np.float64]

_PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # of unit-length embeddings
_FOLDS = 4


@dataclass(kw_only=True)
class Ridge(PromptRouter):
    """Quality of model m = mean_m + (e - mean embedding) w_m, |W|^2 penalised.

    Parameters
    ----------
    penalty : > 0 on unit-length embeddings, or 0 to choose it by squared error out of fold. Light
        penalties lose to the best single model
    """

    name = "ridge"
    summary = "one linear estimate a model, penalty chosen out of fold"

    penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.penalty < np.inf:
            raise UsageError(f"router 'ridge': expected penalty >= 0, got {self.penalty!r}")

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        mean_K = data.mean_scores()
        offset = data.embeddings.mean(axis=0, dtype=np.float64)
        target_NK = data.scores - mean_K
        penalties = (self.penalty,) if self.penalty else _PENALTIES
        fold_N = grouped_folds(data.embeddings, _FOLDS, rng)
        found, held_out = ridge(data.embeddings - offset, target_NK, penalties, fold_N)
        errors = np.nanmean(np.square(held_out - target_NK), axis=(1, 2))
        self._weights: Float64 = found[int(errors.argmin())]
        self._intercept: Float64 = mean_K - offset @ self._weights

    def _predict(self, queries: Queries) -> Float64:
        return np.asarray(queries.embeddings @ self._weights + self._intercept)

    def _state(self) -> Arrays:
        return {"weights": self._weights, "intercept": self._intercept}

    def _restore(self, arrays: Arrays) -> None:
        self._weights, self._intercept = arrays["weights"], arrays["intercept"]
