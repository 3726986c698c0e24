"""Hindsight that does not trust luck: right answers are credited by how likely they were known.

With many models guessing among few options somebody is right by chance on almost every prompt, so
the plain oracle is out of anybody's reach. Here a model either knows an answer or guesses:

    a_k = mean training score,  c = chance of a blind guess,  kappa = (a_k - c) / (1 - c)
    P(knew | right) = kappa / a_k
    credit = P(knew | right) + (1 - P(knew | right)) * c

The credit is the expected score if the same model were asked again. The model of highest credit
among the right ones is chosen. Assumes that guesses are independent and uniform over the options;
shared wrong beliefs make real models luckier or unluckier together. The formula is this project's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet


@dataclass(kw_only=True)
class OracleChanceAware(PromptRouter):
    """Estimates quality by the outcome times the credit of a right answer (see the module)."""

    name = "oracle-chance-aware"
    summary = "hindsight that discounts lucky guesses"
    hindsight = True
    needs_embeddings = False
    method = "none"
    needs = "the outcomes to come"
    adding_a_model = "few examples"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._accuracy = data.mean_scores()

    def _predict(self, queries: Queries) -> npt.NDArray[np.float64]:
        return self.credit(queries)

    def credit(self, queries: Queries) -> npt.NDArray[np.float64]:
        """Return the expected score of asking each model again, shape (N, K); 0 where wrong.

        Raises InputError where the chance of a blind guess is unknown.
        """
        if queries.chance is None or queries.truth is None or np.isnan(queries.chance).any():
            raise InputError(
                "oracle-chance-aware needs the 'chance' column (probability that a blind guess is "
                "right, 1 / options) for every prompt; add it to the table or leave this router out"
            )
        chance_N1 = np.clip(queries.chance, 0.0, 0.999)[:, None]
        accuracy_K = np.maximum(self._accuracy, 1e-9)
        kappa_NK = np.clip((accuracy_K - chance_N1) / (1.0 - chance_N1), 0.0, 1.0)
        knew_NK = np.clip(kappa_NK / accuracy_K, 0.0, 1.0)
        right_NK = np.nan_to_num(np.asarray(queries.truth, dtype=np.float64), nan=0.0)
        credit: npt.NDArray[np.float64] = right_NK * (knew_NK + (1.0 - knew_NK) * chance_N1)
        return credit

    def _state(self) -> Arrays:
        return {"accuracy": self._accuracy}

    def _restore(self, arrays: Arrays) -> None:
        self._accuracy = arrays["accuracy"]
