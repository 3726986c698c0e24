"""Categories by the votes of the nearest labelled prompts; neighbourhoods for labels and jitter.

Shapes: N labelled prompts, Q queries, D features, C categories, k neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.prompts.router import Arrays

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_BLOCK = 1024  # queries at a time: bounds the similarities held in memory


def nearest(
    query_QD: Float,
    key_ND: Float,
    k: int,
    *,
    query_group: Ints | None = None,
    key_group: Ints | None = None,
) -> tuple[Ints, Float64]:
    """Return indices and similarities of the k keys nearest by inner product, both (Q, k).

    Descending, ties to the earlier key; k is cut to N. A key of the query's own group (for instance
    itself, or its fold) is no neighbour: its similarity is -inf and it comes last.
    """
    k = min(k, len(key_ND))
    index = np.empty((len(query_QD), k), dtype=np.intp)
    similarity = np.empty((len(query_QD), k))
    keys = np.asarray(key_ND, dtype=np.float32)
    for start in range(0, len(query_QD), _BLOCK):
        rows = slice(start, start + _BLOCK)
        near = np.asarray(query_QD[rows], dtype=np.float32) @ keys.T
        if query_group is not None and key_group is not None:
            near[query_group[rows][:, None] == key_group] = -np.inf
        found = np.sort(np.argpartition(-near, k - 1, axis=1)[:, :k], axis=1)
        value = np.take_along_axis(near, found, axis=1)
        order = np.argsort(-value, axis=1, kind="stable")
        index[rows] = np.take_along_axis(found, order, axis=1)
        similarity[rows] = np.take_along_axis(value, order, axis=1)
    return index, similarity


class NeighbourVotes:
    """Share of the k nearest labelled prompts that each category has, shrunk to its frequency.

    p_c = (votes for c + f_c) / (k + 1), with f_c the share of c among all labels: one vote for the
    prior, so that no category is impossible.
    """

    def __init__(self, k: int = 25) -> None:
        self.k = k

    def fit(self, embedding_ND: Float, code_N: Ints, num_categories: int) -> NeighbourVotes:
        """Keep the labelled prompts and return self."""
        self._embeddings = np.array(embedding_ND, dtype=np.float32)
        self._codes = np.array(code_N, dtype=np.intp)
        self._num_categories = num_categories
        return self

    def held_out(self, fold_N: Ints) -> Float64:
        """Return probabilities of the kept prompts by the votes of other folds, (N, C)."""
        near, similarity = nearest(
            self._embeddings, self._embeddings, self.k, query_group=fold_N, key_group=fold_N
        )
        return self._votes(near, np.isfinite(similarity))

    def probabilities(self, embedding_QD: Float) -> Float64:
        """Return the probability of each category, shape (Q, C)."""
        near, similarity = nearest(embedding_QD, self._embeddings, self.k)
        return self._votes(near, np.isfinite(similarity))

    def _votes(self, near_Qk: Ints, valid_Qk: npt.NDArray[np.bool_]) -> Float64:
        prior_C = np.bincount(self._codes, minlength=self._num_categories) / len(self._codes)
        votes_QC = np.zeros((len(near_Qk), self._num_categories))
        rows = np.broadcast_to(np.arange(len(near_Qk))[:, None], near_Qk.shape)
        np.add.at(votes_QC, (rows, self._codes[near_Qk]), valid_Qk.astype(np.float64))
        return np.asarray((votes_QC + prior_C) / (votes_QC.sum(axis=1, keepdims=True) + 1.0))

    def state(self) -> Arrays:
        """Return what was kept as arrays."""
        return {
            "votes_embeddings": self._embeddings,
            "votes_codes": self._codes,
            "votes_shape": np.array([self.k, self._num_categories]),
        }

    @classmethod
    def restore(cls, arrays: Arrays) -> NeighbourVotes:
        """Rebuild from ``state``."""
        k, num_categories = (int(n) for n in arrays["votes_shape"])
        return cls(k).fit(arrays["votes_embeddings"], arrays["votes_codes"], num_categories)
