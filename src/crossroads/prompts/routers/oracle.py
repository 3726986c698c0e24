"""Hindsight: the best outcome there was for each prompt. A bound, not a router."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet


@dataclass(kw_only=True)
class Oracle(PromptRouter):
    """Estimates quality by the outcome itself; a model that was not run counts as 0.

    Among equally good models the rule takes the cheapest, as RouterArena's optimal selection does.
    """

    name = "oracle"
    summary = "hindsight: the best outcome of each prompt"
    hindsight = True
    needs_embeddings = False
    method = "none"
    needs = "the outcomes to come"
    adding_a_model = "free"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        pass

    def _predict(self, queries: Queries) -> npt.NDArray[np.float64]:
        return np.nan_to_num(np.asarray(queries.truth, dtype=np.float64), nan=0.0)

    def _state(self) -> Arrays:
        return {}

    def _restore(self, arrays: Arrays) -> None:
        pass
