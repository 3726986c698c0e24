"""A cascade of beliefs: is the cheap model right, and if not, who is?

AutoMix (2023, arXiv 2310.12963) lets the cheap model answer, asks it ``samples`` times whether the
answer is right, and treats the share of "yes" as a noisy observation o of a hidden state, who of
the models is right; a meta-verifier, a threshold or a POMDP, decides whether to ask the larger
model. With beliefs by Bayes' rule over the models' outcomes s_k:

    log-odds P(s_k = 1 | o) = log-odds mean_k + sum_j log P(o_j | s_k = 1) / P(o_j | s_k = 0)

What is replayed here, and what is not: an outcome table has no answers to verify, so the
verification of model j, the j-th cheapest, is a stand-in made from the prompt alone, before
anything is generated: a logistic estimate that j is right, rounded to ``samples`` votes. What such
an observation says of every model is counted out of fold. The router therefore estimates quality
before generation like any other, knows less than a verifier which reads the answer, and is not
charged the calls of a cascade. Published: one verified model and one to escalate to; here every
model has a belief, the first ``verified`` ones give observations, and escalation goes where belief,
or the decision rule, says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.calibration import log_odds
from crossroads.prompts.regression import logistic_regressions, sigmoid
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import grouped_folds

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

VERIFIERS = ("pomdp", "threshold")
_FOLDS = 3
_PENALTY = 10.0  # of the logistic estimates, as in ``logistic``


@dataclass(kw_only=True)
class SelfVerification(PromptRouter):
    """Beliefs about every model from the votes on the cheapest ones.

    Parameters
    ----------
    verifier : ``pomdp`` keeps all vote counts, ``threshold`` only which side of the best cut
    samples : votes on an answer, >= 1
    verified : cheapest models that are observed, >= 1
    shrink : prompts of the model's mean added to each count of votes, >= 0
    """

    name = "automix"
    summary = "beliefs from simulated self-verification of the cheapest models"
    axis = "size"

    verifier: str = "pomdp"
    samples: int = 8
    verified: int = 1
    shrink: float = 20.0

    def __post_init__(self) -> None:
        if self.verifier not in VERIFIERS:
            raise unknown_name("verifier of router 'automix':", self.verifier, VERIFIERS)
        if min(self.samples, self.verified) < 1 or not 0 <= self.shrink < np.inf:
            raise UsageError(
                "router 'automix': expected samples >= 1, verified >= 1 and shrink >= 0, got "
                f"{self.settings!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        mean_K = data.mean_scores()
        # Unknown costs count as 0: among equals the weakest model is verified first.
        order = np.lexsort((mean_K, data.mean_costs()))[: self.verified]
        self._base = log_odds(mean_K)
        fold_N = grouped_folds(data.embeddings, _FOLDS, rng)
        chance_NJ = np.tile(mean_K[order], (len(data), 1))
        for fold in np.unique(fold_N):
            rest, rows = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
            if len(rest):
                weights = logistic_regressions(
                    data.embeddings[rest], data.scores[rest][:, order], penalty=_PENALTY
                )
                chance_NJ[rows] = _chances(data.embeddings[rows], weights)
        votes_NJ = self._votes(chance_NJ)
        self._evidence = np.stack([self._counted(votes_N, data.scores) for votes_N in votes_NJ.T])
        self._weights = logistic_regressions(
            data.embeddings, data.scores[:, order], penalty=_PENALTY
        )

    def _votes(self, chance_NJ: Float64) -> Ints:
        """Return how many of the samples say yes, shape (N, J)."""
        return np.floor(chance_NJ * self.samples + 0.5).astype(np.intp)

    def _counted(self, votes_N: Ints, score_NK: Float) -> Float64:
        """Return log P(o | right) / P(o | wrong) for each number of votes, (samples + 1, K)."""
        observation_N = votes_N
        if self.verifier == "threshold":
            cut = best_cut(votes_N, score_NK, self.samples)
            observation_N = np.where(votes_N >= cut, self.samples, 0)
        evidence = evidence_of(observation_N, score_NK, self.samples + 1, self.shrink)
        if self.verifier == "threshold":
            return evidence[np.where(np.arange(self.samples + 1) >= cut, self.samples, 0)]
        return evidence

    def _predict(self, queries: Queries) -> Float64:
        votes_NJ = self._votes(_chances(queries.embeddings, self._weights))
        belief_NK = np.tile(self._base, (len(queries), 1))
        for evidence, votes_N in zip(self._evidence, votes_NJ.T, strict=True):
            belief_NK += evidence[votes_N]
        return sigmoid(belief_NK)

    def _state(self) -> Arrays:
        return {"base": self._base, "evidence": self._evidence, "weights": self._weights}

    def _restore(self, arrays: Arrays) -> None:
        self._base, self._evidence = arrays["base"], arrays["evidence"]
        self._weights = arrays["weights"]


def _chances(x_ND: Float, weights: Float64) -> Float64:
    return sigmoid(x_ND.astype(np.float64) @ weights[:-1] + weights[-1])


def evidence_of(observation_N: Ints, score_NK: Float, num_values: int, shrink: float) -> Float64:
    """Return log P(o | s_k = 1) / P(o | s_k = 0), shape (num_values, K), by Bayes' rule.

    It is the log-odds of model k's mean score where o was observed, shrunk to its overall mean,
    less the log-odds of that mean; scores between 0 and 1 count as probabilities.
    """
    known = np.isfinite(score_NK)
    is_value_ON = (observation_N == np.arange(num_values)[:, None]).astype(np.float64)
    total_OK = is_value_ON @ np.where(known, score_NK, 0.0)
    count_OK = is_value_ON @ known
    mean_K = np.where(known, score_NK, 0.0).sum(axis=0, dtype=np.float64) / known.sum(axis=0)
    weight = max(shrink, 1e-9)
    return log_odds((total_OK + weight * mean_K) / (count_OK + weight)) - log_odds(mean_K)


def best_cut(votes_N: Ints, score_NK: Float, samples: int) -> int:
    """Return the cut in 1..samples whose two sides, each sent to its own best model, score most."""
    known = np.isfinite(score_NK)
    filled = np.where(known, score_NK, 0.0)

    def worth(rows: npt.NDArray[np.bool_]) -> float:
        """Mean score of the best model of this side, times its prompts."""
        count_K = known[rows].sum(axis=0)
        mean_K = filled[rows].sum(axis=0) / np.maximum(count_K, 1)
        return float(mean_K.max() * rows.sum())

    cuts = np.arange(1, samples + 1)
    return int(cuts[np.argmax([worth(votes_N >= c) + worth(votes_N < c) for c in cuts])])
