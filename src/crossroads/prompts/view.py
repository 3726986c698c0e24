"""What the learned routers look at: a prompt's embedding, centred, and the wording of its text.

A table need not carry texts, and a prompt may come as an embedding alone. Style then stands at its
training mean, the prompt has no words, and what was learnt from embeddings decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.prompts.router import Arrays, Queries, TrainingSet
from crossroads.prompts.wording import NUM_STYLES, Wording, read_wording

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]

_MOST_AXES = 64  # principal axes kept: the rest of an embedding is mostly noise for routing
_STYLE_LIMIT = 4.0  # standard deviations: an unheard-of style is not extrapolated further


@dataclass(frozen=True, kw_only=True)
class PromptView:
    """N prompts as seen by a fitted ``PromptReader``.

    Attributes
    ----------
    centred : float64 (N, D); embedding less the training mean
    principal : float64 (N, R); its first principal components
    style : float64 (N, NUM_STYLES); standardised, 0 where there is no text
    wording : words of the texts, or None
    """

    centred: Float64
    principal: Float64
    style: Float64
    wording: Wording | None

    def __len__(self) -> int:
        return len(self.centred)


class PromptReader:
    """Learns means, axes and scales from training prompts; reads prompts in those terms."""

    def fit(self, data: TrainingSet) -> PromptView:
        """Learn from the training prompts and return their view."""
        embeddings = data.embeddings.astype(np.float64)
        self._mean: Float64 = embeddings.mean(axis=0)
        centred = embeddings - self._mean
        _, axes = np.linalg.eigh(centred.T @ centred)
        self._axes: Float64 = np.ascontiguousarray(axes[:, ::-1][:, :_MOST_AXES])
        self._style_mean, self._style_scale = np.zeros(NUM_STYLES), np.zeros(NUM_STYLES)
        wording = None
        if data.texts is not None:
            wording = read_wording(data.texts)
            style = wording.style
            self._style_mean = style.mean(axis=0)
            spread = style.std(axis=0)
            # A style that never varies says nothing when it does.
            usable = spread > 1e-6
            self._style_scale[usable] = 1.0 / spread[usable]
        return self._view(centred, wording)

    @property
    def mean(self) -> Float64:
        """Mean embedding, (D,)."""
        return self._mean

    @property
    def axes(self) -> Float64:
        """Principal axes, (D, R)."""
        return self._axes

    def read(self, queries: Queries) -> PromptView:
        """Return N prompts in the terms learnt."""
        return self._view(queries.embeddings - self._mean, self.wording(queries))

    def wording(self, queries: Queries) -> Wording | None:
        """Return how the prompts are worded; None without texts, there or in training."""
        if queries.texts is None or not self.reads_texts:
            return None
        return read_wording(queries.texts)

    def standardised(self, wording: Wording) -> Float64:
        """Return the style in the terms learnt, (N, NUM_STYLES)."""
        style: Float64 = wording.style - self._style_mean
        style *= self._style_scale
        np.maximum(style, -_STYLE_LIMIT, out=style)
        np.minimum(style, _STYLE_LIMIT, out=style)
        return style

    @cached_property
    def reads_texts(self) -> bool:
        """Whether it learnt from texts; else their style and words count for nothing."""
        return bool(self._style_scale.any())

    def _view(self, centred: Float64, wording: Wording | None) -> PromptView:
        style = np.zeros((len(centred), NUM_STYLES))
        if wording is not None:
            style = self.standardised(wording)
        return PromptView(
            centred=centred, principal=centred @ self._axes, style=style, wording=wording
        )

    def state(self) -> Arrays:
        """Return what was learnt as arrays."""
        return {
            "reader_mean": self._mean,
            "reader_axes": self._axes,
            "reader_style": np.stack([self._style_mean, self._style_scale]),
        }

    @classmethod
    def restore(cls, arrays: Arrays) -> PromptReader:
        """Rebuild from ``state``."""
        reader = cls()
        reader._mean, reader._axes = arrays["reader_mean"], arrays["reader_axes"]
        reader._style_mean, reader._style_scale = arrays["reader_style"]
        return reader
