"""A prompt's category by a classifier of a given kind, with probabilities held out for training.

Prompts without a label are given one where the expansion is confident; the others are never trained
on, and get the probabilities of the whole classifier.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.prompts.composition.labels import UNLABELLED, expand_labels
from crossroads.prompts.composition.neighbours import NeighbourVotes
from crossroads.prompts.domain_classifier import DomainClassifier
from crossroads.prompts.router import Arrays, Queries, TrainingSet
from crossroads.prompts.view import PromptReader

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

CLASSIFIERS = ("linear", "neighbours")


class CategoryModel:
    """Probability of each of C categories for a prompt.

    ``linear`` is the domain classifier (embedding, style, words), ``neighbours`` the vote of the
    nearest labelled prompts. A single category needs neither.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._linear: DomainClassifier | None = None
        self._votes: NeighbourVotes | None = None
        self._reader = PromptReader()

    def fit(self, data: TrainingSet, code_N: Ints, num_categories: int, fold_N: Ints) -> Float64:
        """Learn, and return each training prompt's probabilities out of its fold, (N, C)."""
        if num_categories == 1:
            return np.ones((len(data), 1))
        if (code_N == UNLABELLED).any():
            code_N = expand_labels(data.embeddings, code_N, num_categories).code
        known, unknown = np.flatnonzero(code_N >= 0), np.flatnonzero(code_N < 0)
        probability_NC = np.empty((len(data), num_categories))
        probability_NC[known] = self._learn(
            data.take(known), code_N[known], num_categories, fold_N[known]
        )
        if len(unknown):
            rest = data.take(unknown)
            asked = Queries(embeddings=rest.embeddings, texts=rest.texts)
            probability_NC[unknown] = self.probabilities(asked)
        return probability_NC

    def _learn(self, data: TrainingSet, code_N: Ints, num_categories: int, fold_N: Ints) -> Float64:
        if self.kind == "neighbours":
            self._votes = NeighbourVotes().fit(data.embeddings, code_N, num_categories)
            return self._votes.held_out(fold_N)
        view = self._reader.fit(data)
        self._linear = DomainClassifier()
        return self._linear.fit_held_out(view, code_N, num_categories, fold_N)

    def probabilities(self, queries: Queries) -> Float64:
        """Return the probability of each category, shape (N, C)."""
        if self._votes is not None:
            return self._votes.probabilities(queries.embeddings)
        if self._linear is not None:
            return self._linear.probabilities(self._reader.read(queries))
        return np.ones((len(queries), 1))

    def state(self) -> Arrays:
        """Return what was learnt as arrays."""
        if self._votes is not None:
            return self._votes.state()
        return {} if self._linear is None else self._linear.state() | self._reader.state()

    @classmethod
    def restore(cls, kind: str, arrays: dict[str, npt.NDArray[Any]]) -> CategoryModel:
        """Rebuild from ``state``."""
        model = cls(kind)
        if "votes_shape" in arrays:
            model._votes = NeighbourVotes.restore(arrays)
        if "domain_weights" in arrays:
            model._linear = DomainClassifier.restore(arrays)
            model._reader = PromptReader.restore(arrays)
        return model
