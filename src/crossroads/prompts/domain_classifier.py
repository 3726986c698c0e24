"""Which domain a prompt belongs to: soft labels learned from the table's ``domain`` column.

Words vote by naive Bayes over hashed buckets; their C log-odds join embedding and style in one
multinomial logistic regression. Compressing ten thousand word weights to C features first keeps the
regression small and, as the odds of a training prompt come from the other folds, honest.

The first of the two steps of Composition of Experts (2024, arXiv 2412.01868).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.prompts.regression import softmax, softmax_regression
from crossroads.prompts.router import Arrays
from crossroads.prompts.view import PromptView
from crossroads.prompts.wording import NUM_BUCKETS, NUM_STYLES, Wording

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

MOST_DOMAINS = 64  # a column with more values is no category; the rarer ones become one
_SMOOTHING = 0.3  # added to every word count
_STYLE_WEIGHT = 0.07  # brings a standardised style to the size of an embedding's coordinate
_WORDS_WEIGHT = 0.3  # the same for word log-odds of unit spread
_PENALTY = 0.4
_STEPS = 30  # of L-BFGS


def domain_codes(domains: npt.NDArray[np.object_]) -> tuple[Ints, int]:
    """Return each prompt's domain as a number, shape (N,), and how many domains there are.

    Beyond the most frequent ones all domains share the last number. None is a domain too.
    """
    names, code_N, counts = np.unique(
        domains.astype(np.str_), return_inverse=True, return_counts=True
    )
    rank = np.empty(len(names), dtype=np.intp)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(names))
    num_domains = min(len(names), MOST_DOMAINS)
    return np.minimum(rank[code_N.ravel()], num_domains - 1), num_domains


@dataclass(frozen=True, slots=True)
class LogitParts:
    """What adds up to the logits of C domains.

    Attributes
    ----------
    embedding : (D, C); weights of the centred embedding
    style : (NUM_STYLES, C); of the standardised style
    odds : (C, C); of the scaled sums of ``DomainClassifier.odds``
    bias : (C,)
    """

    embedding: Float64
    style: Float64
    odds: Float64
    bias: Float64


class DomainClassifier:
    """Probability of each of C domains for a prompt."""

    @property
    def num_domains(self) -> int:
        return self._num_domains

    @property
    def odds(self) -> npt.NDArray[np.float32]:
        """Log-odds of each word bucket, (NUM_BUCKETS, C); no rows where it learnt no words."""
        return self._odds

    @property
    def has_words(self) -> bool:
        return len(self._odds) > 0

    def parts(self, dim: int) -> LogitParts:
        """Return the logits' weights for embeddings of ``dim``, applicable to plain features."""
        style, odds = dim, dim + NUM_STYLES
        return LogitParts(
            embedding=self._weights[:style],
            style=_STYLE_WEIGHT * self._weights[style:odds],
            odds=_WORDS_WEIGHT * self._odds_scale * self._weights[odds:-1],
            bias=self._weights[-1],
        )

    def fit(
        self, view: PromptView, code_N: Ints, num_domains: int, fold_N: Ints
    ) -> DomainClassifier:
        """Learn from N prompts and return self."""
        self._learn(view, code_N, num_domains, fold_N)
        return self

    def fit_held_out(
        self, view: PromptView, code_N: Ints, num_domains: int, fold_N: Ints
    ) -> Float64:
        """Learn from N prompts; return their probabilities out of fold, shape (N, C)."""
        design = self._learn(view, code_N, num_domains, fold_N)
        probability_NC = np.zeros((len(design), num_domains))
        for j in np.unique(fold_N):
            train, test = np.flatnonzero(fold_N != j), np.flatnonzero(fold_N == j)
            weights = softmax_regression(
                design[train], code_N[train], num_domains, penalty=_PENALTY, steps=_STEPS
            )
            probability_NC[test] = softmax(design[test] @ weights[:-1] + weights[-1])
        return probability_NC

    def probabilities(self, view: PromptView) -> Float64:
        """Return the probability of each domain, shape (N, C)."""
        odds_NC = np.zeros((len(view), self._num_domains))
        if view.wording is not None and self.has_words:
            odds_NC = view.wording.sums(self._odds) * self._odds_scale
        design = self._design(view, odds_NC)
        return softmax(design @ self._weights[:-1] + self._weights[-1])

    def _design(self, view: PromptView, odds_NC: Float64) -> Float64:
        parts = (view.centred, _STYLE_WEIGHT * view.style, _WORDS_WEIGHT * odds_NC)
        return np.concatenate(parts, axis=1)

    def _learn(self, view: PromptView, code_N: Ints, num_domains: int, fold_N: Ints) -> Float64:
        """Fit words and regression; return the design of the training prompts."""
        self._num_domains = num_domains
        self._odds: npt.NDArray[np.float32] = np.zeros((0, num_domains), dtype=np.float32)
        self._odds_scale = 1.0
        odds_NC = np.zeros((len(view), num_domains))
        if view.wording is not None:
            odds_NC = self._learn_words(view.wording, code_N, fold_N)
        design = self._design(view, odds_NC)
        self._weights = softmax_regression(
            design, code_N, num_domains, penalty=_PENALTY, steps=_STEPS
        )
        return design

    def _learn_words(self, wording: Wording, code_N: Ints, fold_N: Ints) -> Float64:
        """Keep the word log-odds; return those of the training prompts, held out, (N, C)."""
        from scipy.sparse import csr_array

        words = wording.matrix()
        words.data[:] = 1.0
        shape = (len(code_N), self._num_domains)
        one_hot = csr_array((np.ones(len(code_N)), (np.arange(len(code_N)), code_N)), shape=shape)
        folds = np.unique(fold_N)
        by_fold = [(words[fold_N == j].T @ one_hot[fold_N == j]).toarray() for j in folds]
        whole = np.sum(by_fold, axis=0)
        odds = np.zeros(shape)
        for j, counts in zip(folds, by_fold, strict=True):
            rows = fold_N == j
            odds[rows] = words[rows] @ _log_odds(whole - counts)
        odds *= wording.row_scale[:, None]
        self._odds = _log_odds(whole).astype(np.float32)
        self._odds_scale = 1.0 / max(float(odds.std()), 1e-9)
        return odds * self._odds_scale

    def state(self) -> Arrays:
        """Return what was learnt as arrays."""
        return {
            "domain_weights": self._weights,
            "domain_odds": self._odds,
            "domain_odds_scale": np.array(self._odds_scale),
        }

    @classmethod
    def restore(cls, arrays: Arrays) -> DomainClassifier:
        """Rebuild from ``state``."""
        classifier = cls()
        classifier._weights = arrays["domain_weights"]
        classifier._num_domains = classifier._weights.shape[1]
        classifier._odds = arrays["domain_odds"]
        classifier._odds_scale = float(arrays["domain_odds_scale"])
        return classifier


def _log_odds(count_VC: Float64) -> Float64:
    """Log share of each word among a domain's words, less the mean over domains."""
    share = np.log(count_VC + _SMOOTHING) - np.log(count_VC.sum(axis=0) + _SMOOTHING * NUM_BUCKETS)
    return np.asarray(share - share.mean(axis=1, keepdims=True))
