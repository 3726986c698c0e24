"""From a few category labels to many: semi-supervised expansion over unlabelled prompts.

Composition of Experts (2024, arXiv 2412.01868) labels a seed of prompts and propagates. ``spread``
lets labels diffuse over the graph of nearest neighbours (Zhou et al., Learning with local and
global consistency, 2004); ``pseudo`` trains a classifier on the labels, adopts its most confident
guesses as labels, and repeats with more of them (Yarowsky 1995). Both adopt equally many for each
category: a threshold on confidence lets the frequent categories swallow the others.

Shapes: N prompts, D features, C categories. A code of -1 is an unlabelled prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UsageError, unknown_name
from crossroads.prompts.composition.neighbours import nearest
from crossroads.prompts.domain_classifier import MOST_DOMAINS
from crossroads.prompts.regression import softmax, softmax_regression

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

UNLABELLED = -1
REST = "other"  # the name of the rarest categories taken together
_NEIGHBOURS = 10  # edges of a prompt in the graph
_REACH = 0.9  # share of a prompt's label mass that comes from its neighbours, alpha in the paper
_STEPS = 30  # of diffusion: 0.9^30 = 4 % of the mass has not arrived
_ROUNDS = 3  # of pseudo-labels
_PENALTY = 0.4  # of the regression on unit vectors, as in the domain classifier


@dataclass(frozen=True, kw_only=True, slots=True)
class Expansion:
    """Labels after expansion.

    Attributes
    ----------
    code : (N,) category, -1 where none was adopted; given labels are as they were
    confidence : (N,) share of the likeliest category in [0, 1]; 1 for given labels
    """

    code: Ints
    confidence: Float64

    @property
    def coverage(self) -> float:
        """Share of the prompts that have a label now."""
        return float((self.code != UNLABELLED).mean())


def category_codes(domain_N: npt.NDArray[np.object_]) -> tuple[Ints, tuple[str, ...]]:
    """Return each prompt's category as a number, -1 without one, and the names of the categories.

    None and blank are no category. The most frequent come first, equals by name; beyond the first
    64 they become one, ``other``. Raises InputError where nothing is labelled.
    """
    named_N = np.array([str(d) if d is not None else "" for d in domain_N])
    is_named = np.char.strip(named_N) != ""
    if not is_named.any():
        raise InputError("no prompt has a category; fill the 'domain' column of some of them")
    names, inverse, counts = np.unique(named_N[is_named], return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(names), dtype=np.intp)
    rank[order] = np.arange(len(names))
    code_N = np.full(len(domain_N), UNLABELLED, dtype=np.intp)
    code_N[is_named] = np.minimum(rank[inverse.ravel()], MOST_DOMAINS - 1)
    kept = [str(name) for name in names[order][:MOST_DOMAINS]]
    if len(names) > MOST_DOMAINS:
        kept[-1] = REST
    return code_N, tuple(kept)


def expand_labels(
    embedding_ND: Float,
    code_N: Ints,
    num_categories: int,
    *,
    method: str = "spread",
    share: float = 0.3,
) -> Expansion:
    """Label the unlabelled prompts whose category is most confident.

    ``share`` bounds how many: of N prompts and C categories, ``share`` N / C a category. Raises
    UsageError for an unknown method or a share outside [0, 1], InputError where no prompt is
    labelled.
    """
    if method not in _METHODS:
        raise unknown_name("label expansion", method, _METHODS)
    if not 0 <= share <= 1:
        raise UsageError(f"label expansion: expected share in [0, 1], got {share!r}")
    given = code_N != UNLABELLED
    if not given.any():
        raise InputError("label expansion: no prompt is labelled; label a few of each category")
    share_NC = _METHODS[method](embedding_ND, code_N, num_categories, share)
    confidence_N = np.where(given, 1.0, share_NC.max(axis=1))
    return Expansion(code=_adopted(share_NC, code_N, share), confidence=confidence_N)


def _adopted(share_NC: Float64, code_N: Ints, share: float) -> Ints:
    """Return the labels with, of each category, the most confident guesses added."""
    num_prompts, num_categories = share_NC.shape
    quota = int(share * num_prompts / num_categories)
    guess_N, confidence_N = share_NC.argmax(axis=1), share_NC.max(axis=1)
    adopted_N = code_N.copy()
    for category in range(num_categories):
        is_open = (code_N == UNLABELLED) & (guess_N == category) & (confidence_N > 0)
        rows = np.flatnonzero(is_open)
        adopted_N[rows[np.argsort(-confidence_N[rows], kind="stable")][:quota]] = category
    return adopted_N


def _spread(embedding_ND: Float, code_N: Ints, num_categories: int, _: float) -> Float64:
    """Return each prompt's share of label mass by category, (N, C), after diffusion."""
    from scipy.sparse import csr_array, diags_array

    num_prompts = len(code_N)
    itself = np.arange(num_prompts)
    near, similarity = nearest(
        embedding_ND, embedding_ND, _NEIGHBOURS, query_group=itself, key_group=itself
    )
    weight = np.where(np.isfinite(similarity), np.maximum(similarity, 0.0), 0.0)
    rows = np.repeat(itself, near.shape[1])
    directed = csr_array((weight.ravel(), (rows, near.ravel())), shape=(num_prompts, num_prompts))
    graph = directed.maximum(directed.T)
    scale = diags_array(1.0 / np.sqrt(np.maximum(graph.sum(axis=1), 1e-12)))
    smooth = scale @ graph @ scale
    # Every category starts with the same mass, or the frequent ones would flood the others.
    seed_NC = _one_hot(code_N, num_categories)
    seed_NC /= np.maximum(seed_NC.sum(axis=0), 1.0)
    mass_NC = seed_NC
    for _step in range(_STEPS):
        mass_NC = _REACH * (smooth @ mass_NC) + (1 - _REACH) * seed_NC
    total_N1 = mass_NC.sum(axis=1, keepdims=True)
    reached = total_N1 > 0
    return np.where(reached, mass_NC / np.where(reached, total_N1, 1.0), 0.0)


def _pseudo(embedding_ND: Float, code_N: Ints, num_categories: int, share: float) -> Float64:
    """Return each prompt's category probabilities, (N, C), after rounds of self-training."""
    design = np.asarray(embedding_ND - embedding_ND.mean(axis=0), dtype=np.float64)
    adopted_N = code_N
    for done in range(1, _ROUNDS + 1):
        rows = np.flatnonzero(adopted_N != UNLABELLED)
        weights = softmax_regression(
            design[rows], adopted_N[rows], num_categories, penalty=_PENALTY
        )
        share_NC = softmax(design @ weights[:-1] + weights[-1])
        adopted_N = _adopted(share_NC, code_N, share * done / _ROUNDS)
    return share_NC


def _one_hot(code_N: Ints, num_categories: int) -> Float64:
    return np.asarray(code_N[:, None] == np.arange(num_categories), dtype=np.float64)


_METHODS: dict[str, Callable[[Float, Ints, int, float], Float64]] = {
    "spread": _spread,
    "pseudo": _pseudo,
}
