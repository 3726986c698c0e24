"""Ridge regression of every model's score on the embedding, penalty chosen out of fold.

Tryage (2023, arXiv 2308.11601) regresses each expert's loss on the prompt; this is its linear form
on frozen embeddings. Weak penalties lose to the best single model by following noise, so the
penalty matters more than the model: it is chosen for the contrast between models, not for how well
difficulty is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.regression import ridge
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import contrasts, grouped_folds

Float64 = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Ridge(PromptRouter):
    """Closed-form linear regression on embeddings.

    Parameters
    ----------
    penalties : candidates on unit rows, each > 0; the one of least squared error of the contrasts
        out of fold is taken. On the command line ``ridge:penalties=30+100``
    folds : parts of the training prompts held out in turn, >= 2
    """

    name = "ridge"
    summary = "linear regression of each model's score"

    penalties: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    folds: int = 5

    def __post_init__(self) -> None:
        try:
            self.penalties = tuple(float(penalty) for penalty in self.penalties)
        except ValueError:
            self.penalties = ()
        if not self.penalties or not all(0 < p < np.inf for p in self.penalties) or self.folds < 2:
            raise UsageError(
                "router 'ridge': expected penalties as numbers > 0 (penalties=30+100) and "
                f"folds >= 2, got {self.folds!r} folds"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        mean_K = data.mean_scores()
        embeddings = data.embeddings.astype(np.float64)
        offset_D = embeddings.mean(axis=0)
        fold_N = grouped_folds(data.embeddings, self.folds, rng)
        deviation_NK = data.scores - mean_K
        coefficients, held_out = ridge(embeddings - offset_D, deviation_NK, self.penalties, fold_N)
        errors = [np.square(contrasts(deviation_NK - guess)).sum() for guess in held_out]
        self.penalty = self.penalties[int(np.argmin(errors))]
        self._weights = coefficients[int(np.argmin(errors))]
        self._intercept = mean_K - offset_D @ self._weights

    def _predict(self, queries: Queries) -> Float64:
        return np.asarray(queries.embeddings.astype(np.float64) @ self._weights + self._intercept)

    def _state(self) -> Arrays:
        return {"weights": self._weights, "intercept": self._intercept}

    def _restore(self, arrays: Arrays) -> None:
        self._weights, self._intercept = arrays["weights"], arrays["intercept"]
