"""The members of router ``auto``: what each makes of a prompt, and how it is fitted out of fold.

Shapes: N prompts, C domain labels (0 where the table has no domains), P columns, K models. Dense
members turn a view into a design (N, P) and share one ridge regression; the words are sparse.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.prompts.clustering import kmeans, squared_distances, squared_lengths
from crossroads.prompts.regression import sparse_ridge
from crossroads.prompts.view import PromptView
from crossroads.prompts.wording import Wording

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_CROSS_COLUMNS = 512  # most products of labels and axes: beyond it they fit noise and cost time
_CROSS_AXES = 16
STYLE_IN_DESIGN = 0.1  # a standardised style beside an embedding's coordinates
STYLE_IN_DISTANCE = 0.07  # the same beside roots of probabilities
_PROMPTS_A_CENTRE = 4  # fewer have nothing to average
_RARITY_WEIGHT = 0.25  # of a word's inverse document frequency
_WORDS_PENALTY = 30.0


def domains_design(view: PromptView, label_NC: Float64) -> Float64:
    """Return labels and their products with the first axes, (N, C + C Z)."""
    num_axes = max(1, min(_CROSS_AXES, _CROSS_COLUMNS // max(label_NC.shape[1], 1) - 1))
    axis_NZ = view.principal[:, :num_axes]
    products = label_NC[:, :, None] * axis_NZ[:, None, :]
    return np.concatenate(
        [label_NC, products.reshape(len(view), label_NC.shape[1] * axis_NZ.shape[1])], axis=1
    )


def linear_design(view: PromptView, label_NC: Float64) -> Float64:
    """Return embedding, style and labels, (N, D + NUM_STYLES + C)."""
    return np.concatenate([view.centred, STYLE_IN_DESIGN * view.style, label_NC], axis=1)


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Gaussian bumps around centres of the prompts: ``exp(-sharpness |point - centre|^2)``.

    A point is (roots of labels, style, principal axes): roots make the distance between labels that
    of Hellinger.
    """

    centres: Float64
    sharpness: float

    @cached_property
    def lengths(self) -> Float:
        """Squared lengths of the centres."""
        return squared_lengths(self.centres)

    @classmethod
    def fit(
        cls, view: PromptView, label_NC: Float64, most: int, rng: np.random.Generator
    ) -> Landmarks:
        """Place up to ``most`` centres by k-means; two bumps' widths reach the median distance."""
        points = cls._points(view, label_NC)
        num_centres = max(1, min(most, len(points) // _PROMPTS_A_CENTRE))
        centres = kmeans(points, num_centres, rng)
        typical = float(np.median(squared_distances(points, centres)))
        return cls(centres=centres, sharpness=2.0 / typical if typical > 0 else 1.0)

    def design(self, view: PromptView, label_NC: Float64) -> Float64:
        """Return each prompt's bumps, (N, centres)."""
        points = self._points(view, label_NC)
        squared = squared_distances(points, self.centres, self.lengths)
        squared *= -self.sharpness
        return np.asarray(np.exp(squared, out=squared))

    @staticmethod
    def _points(view: PromptView, label_NC: Float64) -> Float64:
        parts = (np.sqrt(label_NC), STYLE_IN_DISTANCE * view.style, view.principal)
        return np.concatenate(parts, axis=1)


def fit_words(
    wording: Wording, deviation_NK: npt.NDArray[Any], fold_N: Ints
) -> tuple[npt.NDArray[np.float32], Float64]:
    """Return a table of word weights (NUM_BUCKETS, K) and predictions out of fold (N, K).

    Words weigh by their rarity; predictions are ``Wording.sums`` of the table.
    """
    words = wording.matrix()
    frequency = np.bincount(wording.buckets, minlength=words.shape[1])
    rarity = _RARITY_WEIGHT * np.log((len(wording) + 1) / (frequency + 1))
    words.data *= rarity[wording.buckets]
    held_out = np.zeros(deviation_NK.shape)
    for j in np.unique(fold_N):
        train, test = np.flatnonzero(fold_N != j), np.flatnonzero(fold_N == j)
        weights = sparse_ridge(words[train], deviation_NK[train], _WORDS_PENALTY)
        held_out[test] = words[test] @ weights
    table = rarity[:, None] * sparse_ridge(words, deviation_NK, _WORDS_PENALTY)
    return table.astype(np.float32), held_out
