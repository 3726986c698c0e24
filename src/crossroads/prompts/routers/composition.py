"""Category of the prompt, then the category's expert, of experts that fit a parameter budget.

Composition of Experts (2024, arXiv 2412.01868) as a router. Where it differs from ``category``:
only experts within the budget are ever chosen, the mapping is made on categories predicted out of
fold instead of the true ones, prompts without a category are given one, and the robust variant
sends a prompt of uncertain category to the general expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.composition.classify import CLASSIFIERS, CategoryModel
from crossroads.prompts.composition.compose import category_means
from crossroads.prompts.composition.confidence import MEASURES, choose_threshold, confidence
from crossroads.prompts.composition.labels import category_codes
from crossroads.prompts.composition.mapping import solve_mapping
from crossroads.prompts.composition.sizes import model_sizes, parse_size, parse_sizes
from crossroads.prompts.decide import EXCLUDED
from crossroads.prompts.pool import read_pool
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import grouped_folds

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

WEIGHTINGS = ("hard", "soft")
NOT_KEPT = EXCLUDED  # estimate of an expert outside the composition: no price is worth it
_FOLDS = 4


@dataclass(kw_only=True)
class CompositionOfExperts(PromptRouter):
    """Quality of expert e = W[c, e] for the predicted category c, among the experts kept.

    W holds mean scores by category, shrunk to the expert's overall mean; the experts kept are those
    of the mixed integer programme in ``crossroads.prompts.composition.mapping``. An expert that is
    not kept is estimated at -1000. Prompts without a category (None or blank) are labelled by
    expansion from the others; where even that is unsure they still take part in the mapping.

    Parameters
    ----------
    budget : total parameters of the experts kept, for instance ``31B``; empty for no limit
    sizes : sizes of models, for instance ``small=7B+large=70B``; more than the pool's cards count
    pool : name or file of a pool whose cards say ``parameters``; else sizes are read off the names
    weighting : ``hard`` takes the likeliest category, as in the paper; ``soft`` averages W over the
        categories by their probability, W then being of the given categories
    classifier : ``linear`` (logistic regression of embedding and words) or ``neighbours`` (votes)
    robust : whether a prompt below the confidence threshold goes to the expert best over all
    confidence : ``share`` (of probability or votes) or ``entropy``
    shrink : weight of the expert's overall mean, in prompts, >= 0
    """

    name = "composition"
    summary = "predicted category, then its expert, of experts that fit a budget"
    needs_domains = True
    axis = "domain"
    adding_a_model = "few examples"

    budget: str = ""
    sizes: tuple[str, ...] = ()
    pool: str = ""
    weighting: str = "hard"
    classifier: str = "linear"
    robust: bool = False
    confidence: str = "share"
    shrink: float = 10.0

    def __post_init__(self) -> None:
        for setting, value, known in (
            ("weighting", self.weighting, WEIGHTINGS),
            ("classifier", self.classifier, CLASSIFIERS),
            ("confidence", self.confidence, MEASURES),
        ):
            if value not in known:
                raise unknown_name(f"{setting} of router 'composition':", value, known)
        if not 0 <= self.shrink < np.inf:
            raise UsageError(f"router 'composition': expected shrink >= 0, got {self.shrink!r}")
        self._budget = np.inf
        if self.budget:
            self._budget = parse_size(self.budget, where="router 'composition': budget")
        self._given = parse_sizes(self.sizes, where="router 'composition': sizes")

    @property
    def mapping(self) -> dict[str, str]:
        """Category -> expert; ``(uncertain)`` is the general expert of the robust variant."""
        worth = np.where(self._kept, self._worth, -np.inf)
        names = [*self._categories, "(uncertain)"][: len(worth)]
        return {c: self.models[e] for c, e in zip(names, worth.argmax(axis=1), strict=True)}

    @property
    def kept(self) -> tuple[str, ...]:
        """The experts of the composition."""
        return tuple(m for m, is_kept in zip(self.models, self._kept, strict=True) if is_kept)

    @property
    def total_parameters(self) -> float:
        """Parameters of the experts kept; NaN where no budget asked for sizes."""
        return float(self._sizes[self._kept].sum())

    def active_parameters(self, queries: Queries) -> float:
        """Return the mean parameters of the expert that answers; NaN without prompts or sizes."""
        chosen = self.predict(queries).argmax(axis=1)
        return float(self._sizes[chosen].mean()) if len(chosen) else float("nan")

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        assert data.domains is not None  # checked by fit()
        self._sizes = self._size(data.models)
        code_N, self._categories = category_codes(data.domains)
        fold_N = grouped_folds(data.embeddings, _FOLDS, rng)
        self._model = CategoryModel(self.classifier)
        probability_NC = self._model.fit(data, code_N, len(self._categories), fold_N)
        self._threshold = 0.0
        if self.robust:
            self._threshold = self._validate(data, code_N, probability_NC, fold_N)
        member_NC = self._members(code_N, probability_NC)
        self._worth = self._worths(data.scores, member_NC)
        weight = member_NC.sum(axis=0)
        if self.robust:
            unsure_N = confidence(probability_NC, self.confidence) < self._threshold
            weight = np.append(member_NC[~unsure_N].sum(axis=0), unsure_N.sum())
        self._kept = self._keep(self._worth, weight)

    def _size(self, models: tuple[str, ...]) -> Float64:
        if not self.budget:
            return np.full(len(models), np.nan)
        pool = read_pool(self.pool) if self.pool else None
        return model_sizes(models, given=self._given, pool=pool)

    def _members(self, code_N: Ints, probability_NC: Float64) -> Float64:
        """How far each prompt belongs to each category, for averaging scores: (N, C)."""
        columns = np.arange(probability_NC.shape[1])
        if self.weighting == "hard":
            return np.asarray(_likeliest(probability_NC)[:, None] == columns, dtype=np.float64)
        given_NC = (code_N[:, None] == columns).astype(np.float64)
        return np.asarray(np.where((code_N >= 0)[:, None], given_NC, probability_NC))

    def _worths(self, score_NK: npt.NDArray[np.float32], member_NC: Float64) -> Float64:
        """Mean scores by category; the robust variant has one more row, over all prompts."""
        worth_CK = category_means(score_NK, member_NC, self.shrink)
        if not self.robust:
            return worth_CK
        everyone = category_means(score_NK, np.ones((len(score_NK), 1)), 0.0)
        return np.concatenate([worth_CK, everyone])

    def _keep(self, worth_CK: Float64, weight_C: Float64) -> npt.NDArray[np.bool_]:
        size_K = self._sizes if self.budget else np.ones(worth_CK.shape[1])
        found = solve_mapping(worth_CK, weight_C, size_K, self._budget)
        return np.isin(np.arange(worth_CK.shape[1]), found.kept)

    def _validate(
        self, data: TrainingSet, code_N: Ints, probability_NC: Float64, fold_N: Ints
    ) -> float:
        """Choose the threshold on prompts of known and of left-out categories, both held out.

        Every fold serves once as new prompts of known categories, every category once as prompts
        of a category that classifier and mapping have not seen.
        """
        trials = []
        for j in np.unique(fold_N):
            rest, held = np.flatnonzero(fold_N != j), np.flatnonzero(fold_N == j)
            if len(rest):
                known = (data.scores[rest], code_N[rest], probability_NC[rest])
                trials.append(self._trial(*known, data.scores[held], probability_NC[held]))
        num_categories = probability_NC.shape[1]
        for j in range(min(_FOLDS, num_categories)):
            is_out = code_N % _FOLDS == j  # of the categories by size, so that groups are alike
            rest, held = np.flatnonzero(~is_out & (code_N >= 0)), np.flatnonzero(is_out)
            if len(np.unique(code_N[rest])) > 1:
                part = data.take(rest)
                names, code_n = np.unique(code_N[rest], return_inverse=True)
                model = CategoryModel(self.classifier)
                out_of_fold = model.fit(part, code_n, len(names), fold_N[rest])
                left_out = data.take(held)
                asked = Queries(embeddings=left_out.embeddings, texts=left_out.texts)
                known = (part.scores, code_n, out_of_fold)
                trials.append(self._trial(*known, left_out.scores, model.probabilities(asked)))
        if not trials:
            return 0.0
        sure, routed, general = (np.concatenate(column) for column in zip(*trials, strict=True))
        return choose_threshold(sure, routed, general)

    def _trial(
        self,
        score_NK: npt.NDArray[np.float32],
        code_N: Ints,
        probability_NC: Float64,
        held_score_nK: npt.NDArray[np.float32],
        held_nC: Float64,
    ) -> tuple[Float64, Float64, Float64]:
        """Map on N prompts; return confidence, routed and general score of n held-out ones."""
        member_NC = self._members(code_N, probability_NC)
        worth = self._worths(score_NK, member_NC)
        kept = self._keep(worth, np.append(member_NC.sum(axis=0), 1.0))
        worth = np.where(kept, worth, -1.0)
        rows = np.arange(len(held_nC))
        routed = held_score_nK[rows, self._estimate(held_nC, worth[:-1]).argmax(axis=1)]
        general = held_score_nK[rows, worth[-1].argmax()]
        return confidence(held_nC, self.confidence), np.asarray(routed), np.asarray(general)

    def _estimate(self, probability_NC: Float64, worth_CK: Float64) -> Float64:
        if self.weighting == "hard":
            return np.asarray(worth_CK[_likeliest(probability_NC)])
        return np.asarray(probability_NC @ worth_CK)

    def _predict(self, queries: Queries) -> Float64:
        probability_NC = self._model.probabilities(queries)
        estimate = self._estimate(probability_NC, self._worth[: probability_NC.shape[1]])
        if self.robust:
            unsure_N = confidence(probability_NC, self.confidence) < self._threshold
            estimate = np.where(unsure_N[:, None], self._worth[-1], estimate)
        return np.where(self._kept, estimate, NOT_KEPT)

    def _state(self) -> Arrays:
        return {
            "categories": np.array(self._categories, dtype=np.str_),
            "worth": self._worth,
            "kept": self._kept,
            "parameters": self._sizes,
            "threshold": np.array(self._threshold),
            **self._model.state(),
        }

    def _restore(self, arrays: Arrays) -> None:
        self._categories = tuple(str(name) for name in arrays["categories"])
        self._worth, self._kept = arrays["worth"], arrays["kept"]
        self._sizes, self._threshold = arrays["parameters"], float(arrays["threshold"])
        self._model = CategoryModel.restore(self.classifier, arrays)


def _likeliest(probability_NC: Float64) -> Ints:
    """Return the likeliest category; a hair's difference by rounding is none."""
    return np.asarray(probability_NC.round(9).argmax(axis=1), dtype=np.intp)
