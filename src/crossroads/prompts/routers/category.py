"""Two steps: which category is the prompt of, and how good is each model in it?

The thesis of Composition of Experts (2024, arXiv 2412.01868): averages over categories are steadier
than estimates prompt by prompt. Its mapping under a parameter budget is a rule of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.domain_classifier import DomainClassifier, domain_codes
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import grouped_folds
from crossroads.prompts.view import PromptReader

Float64 = npt.NDArray[np.float64]

WEIGHTINGS = ("soft", "hard")
_FOLDS = 4


@dataclass(kw_only=True)
class Category(PromptRouter):
    """Quality of model m = sum_c P(c | prompt) a_cm, with the shrunk category averages

        a_cm = (sum of m's scores in c + shrink mean_m) / (number of them + shrink)

    Parameters
    ----------
    weighting : ``soft`` averages over categories, ``hard`` takes the likeliest
    shrink : weight of the model's overall mean, in prompts, >= 0
    """

    name = "category"
    summary = "predicted category, then each model's mean score in it"
    needs_domains = True
    uses_subjects = True
    axis = "domain"
    adding_a_model = "few examples"

    weighting: str = "soft"
    shrink: float = 10.0

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise unknown_name("weighting of router 'category':", self.weighting, WEIGHTINGS)
        if not 0 <= self.shrink < np.inf:
            raise UsageError(f"router 'category': expected shrink >= 0, got {self.shrink!r}")

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        assert data.labels is not None  # checked by fit()
        code_N, num_domains = domain_codes(data.labels)
        self._averages = self._average(data, code_N, num_domains)
        self._classifier: DomainClassifier | None = None
        self._reader = PromptReader()
        if num_domains > 1:
            view = self._reader.fit(data)
            fold_N = grouped_folds(data.embeddings, _FOLDS, rng)
            self._classifier = DomainClassifier().fit(view, code_N, num_domains, fold_N)

    def _average(
        self, data: TrainingSet, code_N: npt.NDArray[np.intp], num_domains: int
    ) -> Float64:
        is_in_CN = (code_N == np.arange(num_domains)[:, None]).astype(np.float64)
        known_NK = np.isfinite(data.scores)
        total_CK = is_in_CN @ np.where(known_NK, data.scores, 0.0)
        count_CK = is_in_CN @ known_NK.astype(np.float64)
        shrink = max(self.shrink, 1e-9)
        return np.asarray((total_CK + shrink * data.mean_scores()) / (count_CK + shrink))

    def _predict(self, queries: Queries) -> Float64:
        if self._classifier is None:
            return np.repeat(self._averages[:1], len(queries), axis=0)
        probability_NC = self._classifier.probabilities(self._reader.read(queries))
        if self.weighting == "hard":
            return np.asarray(self._averages[probability_NC.argmax(axis=1)])
        return np.asarray(probability_NC @ self._averages)

    def _state(self) -> Arrays:
        learned = {} if self._classifier is None else self._classifier.state()
        if learned:
            learned |= self._reader.state()
        return {"averages": self._averages, **learned}

    def _restore(self, arrays: Arrays) -> None:
        self._averages = arrays["averages"]
        self._classifier = None
        if "domain_weights" in arrays:
            self._classifier = DomainClassifier.restore(arrays)
            self._reader = PromptReader.restore(arrays)
