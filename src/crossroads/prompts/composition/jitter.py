"""Is a label a property of the neighbourhood? Agreement of neighbours against agreement by chance.

Composition of Experts (2024, arXiv 2412.01868) routes by category because "the best expert of this
prompt" jitters: prompts alike in embedding have unrelated best experts, so that no classifier of
embeddings can learn them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.prompts.composition.neighbours import nearest

Float = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How often a prompt's k nearest neighbours share its label.

    Attributes
    ----------
    observed : mean share of the k neighbours with the same label
    chance : the share if labels were dealt at random, sum of squared label frequencies
    """

    observed: float
    chance: float

    @property
    def kappa(self) -> float:
        """(observed - chance) / (1 - chance): 0 by chance, 1 for perfect agreement."""
        return (self.observed - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0


def neighbour_agreement(embedding_ND: Float, label_N: npt.NDArray[Any], k: int = 10) -> Agreement:
    """Measure how far neighbours share a label. Raises InputError unless N > k >= 1."""
    num_prompts = len(label_N)
    if len(embedding_ND) != num_prompts or not 1 <= k < num_prompts:
        raise InputError(
            f"agreement: expected one label a prompt and 1 <= k < N, got {len(embedding_ND)} "
            f"prompts, {num_prompts} labels and k = {k}"
        )
    itself = np.arange(num_prompts)
    near, _ = nearest(embedding_ND, embedding_ND, k, query_group=itself, key_group=itself)
    _, code_N, count = np.unique(label_N, return_inverse=True, return_counts=True)
    code_N = code_N.ravel()
    # Of the other prompts, without the one that asks.
    chance = float((count * (count - 1)).sum() / (num_prompts * (num_prompts - 1)))
    return Agreement(observed=float((code_N[near] == code_N[:, None]).mean()), chance=chance)


def best_experts(score_NK: Float, rng: np.random.Generator | None = None) -> Ints:
    """Return the best expert of each prompt, shape (N,); NaN is worse than any score.

    Where several are level, ``rng`` draws one of them; without it the one of highest mean score
    stands for all, the steadiest label there can be.
    """
    score = np.where(np.isfinite(score_NK), score_NK, -np.inf)
    best = score >= score.max(axis=1, keepdims=True)
    if rng is None:
        rank_K = np.nanmean(score_NK, axis=0)
        return np.asarray(np.where(best, rank_K, -np.inf).argmax(axis=1), dtype=np.intp)
    return np.asarray(np.where(best, rng.random(score.shape), -1.0).argmax(axis=1), dtype=np.intp)
