"""The flagship: several estimators of each model's deviation from its mean, stacked.

For each prompt the estimate of model k is

    q_k = mean_k + sum over members m of w_m * deviation_mk    (+ bonus for the best single model)

Members, each a ridge regression on its own view of the prompt, hence shrunk towards the means:

``domains``    soft domain labels and their products with the principal axes of the embedding: how
               good a model is in a category, and how that shifts within it
``subjects``   the same of the finer labels, where the table has them
``landmarks``  Gaussian bumps around k-means centres of (labels, style, embedding): what neighbours
               say, at the cost of a few hundred distances however large the table is
``linear``     embedding, style and labels
``words``      hashed words, where the table has texts

The weights w are learned out of fold (``crossroads.prompts.stacking``). The best single model
gets the smallest bonus under which leaving it pays by a standard error out of fold. Where nothing
does, ``auto`` is the best single model at argmax, and its estimates still tell the other decision
rules which cheaper model suits a prompt. The estimate of the best single model is therefore high by
that bonus, usually 0.

Where the table has neither the members do without labels; with fewer than four distinct prompts
a fold nothing is learned but the means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.domain_classifier import DomainClassifier, domain_codes
from crossroads.prompts.fused import FusedStack
from crossroads.prompts.members import Landmarks, domains_design, fit_words, linear_design
from crossroads.prompts.regression import ridge
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import best_single_bonus, blend, grouped_folds, stack_weights
from crossroads.prompts.view import PromptReader, PromptView

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Labels = dict[str, Float64]  # kind of label -> probabilities, (N, C)

ALL = "all"
MEMBERS = ("domains", "subjects", "landmarks", "linear", "words")
_LABELS = ("domains", "subjects")  # columns of the training set, and the members on them
_PENALTIES = {
    "domains": (20.0,),
    "subjects": (20.0,),
    "landmarks": (3.0, 10.0, 30.0),
    "linear": (30.0, 100.0),
}
_PROMPTS_A_FOLD = 4


@dataclass(kw_only=True)
class Auto(PromptRouter):
    """Stack of ridge members with a fall-back to the best single model (see the module).

    Parameters
    ----------
    members : which members take part: ``domains``, ``subjects``, ``landmarks``, ``linear``,
        ``words``
    landmarks : centres of the ``landmarks`` member, >= 1; more follow finer structure, slower
    folds : parts of the training prompts that are held out in turn, >= 2
    """

    name = "auto"
    summary = "stacked estimators; the best single model where nothing beats it"
    uses_domains = True
    uses_subjects = True
    version = 2

    members: tuple[str, ...] = MEMBERS
    landmarks: int = 400
    folds: int = 4

    def __post_init__(self) -> None:
        for member in self.members:
            if member not in MEMBERS:
                raise unknown_name("member of router 'auto':", member, MEMBERS)
        if self.landmarks < 1 or self.folds < 2:
            raise UsageError(
                "router 'auto': expected landmarks >= 1 and folds >= 2, got "
                f"landmarks={self.landmarks!r} and folds={self.folds!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._fused: FusedStack | None = None  # made of the rest for the first prediction
        mean_K = data.mean_scores()
        self._intercept = mean_K.copy()
        self._weights: dict[str, npt.NDArray[Any]] = {}
        self._classifiers: dict[str, DomainClassifier] = {}
        self._landmarks = Landmarks(centres=np.zeros((1, 1)), sharpness=0.0)
        self._reader = PromptReader()
        view = self._reader.fit(data)
        num_distinct = len(np.unique(data.embeddings, axis=0))
        if len(self.models) < 2 or num_distinct < _PROMPTS_A_FOLD * self.folds:
            return
        fold_N = grouped_folds(data.embeddings, self.folds, rng)
        labels = self._learn_labels(view, data, fold_N)
        if "landmarks" in self.members:
            self._landmarks = Landmarks.fit(view, labels[ALL], self.landmarks, rng)
        out_of_fold = mean_K + self._stack(view, labels, data.scores - mean_K, fold_N)
        best = int(mean_K.argmax())
        self._intercept[best] += best_single_bonus(out_of_fold, data.scores, best)

    def _learn_labels(self, view: PromptView, data: TrainingSet, fold_N: Ints) -> Labels:
        """Return the training prompts' labels out of fold."""
        found: Labels = {}
        for kind in _LABELS:
            column = getattr(data, kind)
            if column is None:
                continue
            code_N, num_labels = domain_codes(column)
            if num_labels > 1:
                classifier = self._classifiers[kind] = DomainClassifier()
                found[kind] = classifier.fit_held_out(view, code_N, num_labels, fold_N)
        return _with_all(found, len(view))

    def _stack(
        self, view: PromptView, labels: Labels, deviation_NK: Float64, fold_N: Ints
    ) -> Float64:
        """Fit the members, weigh them, keep the weighed coefficients.

        Returns the stacked deviations out of fold, (N, K).
        """
        names: list[str] = []
        coefficients: list[npt.NDArray[Any]] = []
        held_out: list[Float64] = []
        offsets: dict[str, Float64] = {}
        for name in self.members:
            if name == "words":
                if view.wording is not None:
                    table, predicted = fit_words(view.wording, deviation_NK, fold_N)
                    names, coefficients = [*names, name], [*coefficients, table]
                    held_out.append(predicted)
                continue
            design = self._design(name, view, labels)
            if design.shape[1] == 0:
                continue
            offsets[name] = design.mean(axis=0)
            design -= offsets[name]
            found, predicted = ridge(design, deviation_NK, _PENALTIES[name], fold_N)
            names += [name] * len(found)
            coefficients += list(found)
            held_out += list(predicted)
        if not names:
            return np.zeros(deviation_NK.shape)
        contrast_M, common_M = stack_weights(held_out, deviation_NK)
        for name, part in zip(names, blend(coefficients, contrast_M, common_M), strict=True):
            self._weights[name] = self._weights.get(name, 0) + part
        for name, offset in offsets.items():
            self._intercept -= offset @ self._weights[name]
        return np.asarray(np.sum(blend(held_out, contrast_M, common_M), axis=0))

    def _design(self, name: str, view: PromptView, labels: Labels) -> Float64:
        """Return a dense member's design, not centred; no columns where its labels are missing."""
        if name in _LABELS:
            return domains_design(view, labels.get(name, np.zeros((len(view), 0))))
        if name == "landmarks":
            return self._landmarks.design(view, labels[ALL])
        return linear_design(view, labels[ALL])

    def _predict(self, queries: Queries) -> Float64:
        if not self._weights:
            return np.zeros((len(queries), 1)) + self._intercept
        if self._fused is None:
            self._fused = FusedStack(
                self._reader, self._classifiers, self._landmarks, self._weights, self._intercept
            )
        return self._fused.estimate(queries)

    def _state(self) -> Arrays:
        return {
            "intercept": self._intercept,
            "landmark_centres": self._landmarks.centres,
            "landmark_sharpness": np.array(self._landmarks.sharpness),
            **{f"weights_{name}": weights for name, weights in self._weights.items()},
            **self._reader.state(),
            **{
                f"{kind}_{name}": array
                for kind, classifier in self._classifiers.items()
                for name, array in classifier.state().items()
            },
        }

    def _restore(self, arrays: Arrays) -> None:
        self._fused = None
        self._intercept = arrays["intercept"]
        self._landmarks = Landmarks(
            centres=arrays["landmark_centres"], sharpness=float(arrays["landmark_sharpness"])
        )
        self._weights = {m: arrays[f"weights_{m}"] for m in MEMBERS if f"weights_{m}" in arrays}
        self._reader = PromptReader.restore(arrays)
        self._classifiers = {}
        for kind in _LABELS:
            prefix = f"{kind}_"
            own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
            if own:
                self._classifiers[kind] = DomainClassifier.restore(own)


def _with_all(labels: Labels, num_prompts: int) -> Labels:
    """Add all labels side by side under ``ALL``, shape (N, C); C = 0 without any."""
    return {**labels, ALL: np.concatenate([np.zeros((num_prompts, 0)), *labels.values()], axis=1)}
