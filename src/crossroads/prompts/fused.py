"""Router ``auto`` at work: the sum of its members in four matrix products.

Member by member the estimate takes dozens of small array operations, whose overhead is most of the
time of a single prompt. All that is linear in the embedding, the style or the words is therefore
projected at once, and all that the labels and bumps add is one more product:

    prompt  -> principal axes, logits of the labels, linear estimate      (one projection)
    logits  -> labels, their products with the axes, bumps at landmarks   (one design)
    design  -> deviation of each model

The result is that of the members' own designs, but for rounding in the last bits.

Shapes: N prompts, D embedding, R principal axes, C labels of all kinds, K models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.prompts.domain_classifier import DomainClassifier
from crossroads.prompts.members import STYLE_IN_DESIGN, STYLE_IN_DISTANCE, Landmarks
from crossroads.prompts.router import Queries
from crossroads.prompts.view import PromptReader
from crossroads.prompts.wording import NUM_BUCKETS, NUM_STYLES

Float64 = npt.NDArray[np.float64]
Weights = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Product:
    """Labels of one kind times principal axes: which labels, how many axes, where it is put."""

    labels: slice
    num_axes: int
    columns: slice


class FusedStack:
    """The fitted parts of ``auto``, rearranged.

    Parameters
    ----------
    reader : of the prompts
    classifiers : of the labels, by the name of the member on them
    landmarks : centres and width of the bumps
    weights : of each member's design, (P, K)
    intercept : (K,)
    """

    def __init__(
        self,
        reader: PromptReader,
        classifiers: Mapping[str, DomainClassifier],
        landmarks: Landmarks,
        weights: Weights,
        intercept: Float64,
    ) -> None:
        self._reader = reader
        self._groups: dict[str, slice] = {}
        for kind, known in classifiers.items():
            start = sum(c.num_domains for c in [*classifiers.values()][: len(self._groups)])
            self._groups[kind] = slice(start, start + known.num_domains)
        self._num_labels = sum(known.num_domains for known in classifiers.values())
        self._num_axes = reader.axes.shape[1]
        self._num_styles = NUM_STYLES if reader.reads_texts else 0
        self._project(classifiers, weights, intercept)
        self._read_words(classifiers, weights, len(intercept))
        self._lay_out(landmarks, weights, len(intercept))

    def _project(
        self, classifiers: Mapping[str, DomainClassifier], weights: Weights, intercept: Float64
    ) -> None:
        """Stack what is linear in embedding and style: (D, R + C + K) and (styles, R + C + K)."""
        dim, axes = self._reader.axes.shape
        linear = weights.get("linear", np.zeros((dim + NUM_STYLES, len(intercept))))
        logit = [known.parts(dim) for known in classifiers.values()]
        on_embedding = [self._reader.axes, *(part.embedding for part in logit), linear[:dim]]
        on_style = [
            np.zeros((NUM_STYLES, axes)),
            *(part.style for part in logit),
            STYLE_IN_DESIGN * linear[dim : dim + NUM_STYLES],
        ]
        self._on_embedding: Float64 = np.concatenate(on_embedding, axis=1)
        self._on_style: Float64 = np.concatenate(on_style, axis=1)
        constant = np.concatenate([np.zeros(axes), *(part.bias for part in logit), intercept])
        self._constant: Float64 = constant - self._reader.mean @ self._on_embedding

    def _read_words(
        self, classifiers: Mapping[str, DomainClassifier], weights: Weights, num_models: int
    ) -> None:
        """Stack the tables of words, (buckets, C + K), and what their sums add to the rest."""
        dim = len(self._reader.mean)
        width = self._num_labels + num_models
        self._words: Float64 | None = None
        if "words" not in weights and not any(known.has_words for known in classifiers.values()):
            return
        self._words = np.zeros((NUM_BUCKETS, width))
        self._on_words = np.eye(width)
        for kind, known in classifiers.items():
            group = self._groups[kind]
            if known.has_words:
                self._words[:, group] = known.odds
                self._on_words[group, group] = known.parts(dim).odds
        if "words" in weights:
            self._words[:, self._num_labels :] = weights["words"]

    def _lay_out(self, landmarks: Landmarks, weights: Weights, num_models: int) -> None:
        """Place labels, products and bumps in one design, and stack their weights."""
        labels = np.zeros((self._num_labels, num_models))
        stacked = [labels]
        self._products: list[_Product] = []
        width = self._num_labels
        for kind, group in self._groups.items():
            if kind in weights:
                own = weights[kind]
                count = group.stop - group.start
                labels[group] += own[:count]
                columns = slice(width, width + len(own) - count)
                num_axes = (len(own) - count) // count
                self._products.append(_Product(group, num_axes, columns))
                stacked.append(own[count:])
                width = columns.stop
        if "linear" in weights:
            labels += weights["linear"][len(self._reader.mean) + NUM_STYLES :]
        self._bumps: slice | None = None
        if "landmarks" in weights:
            self._bumps = slice(width, width + len(landmarks.centres))
            stacked.append(weights["landmarks"])
            width = self._bumps.stop
            self._sharpness = landmarks.sharpness
            centres = landmarks.centres
            if not self._num_styles:  # theirs are all 0 then
                style = slice(self._num_labels, self._num_labels + NUM_STYLES)
                centres = np.delete(centres, style, axis=1)
            self._centres: Float64 = np.ascontiguousarray(2.0 * landmarks.sharpness * centres.T)
            self._lengths = landmarks.sharpness * landmarks.lengths
        self._width = width
        self._weights: Float64 = np.concatenate(stacked)

    def estimate(self, queries: Queries) -> Float64:
        """Return the estimated quality of each model, (N, K)."""
        projected = queries.embeddings.astype(np.float64) @ self._on_embedding
        projected += self._constant
        num_axes, num_labels = self._num_axes, self._num_labels
        style: Float64 | None = None
        wording = self._reader.wording(queries)
        if wording is not None:
            style = self._reader.standardised(wording)
            projected += style @ self._on_style
            if self._words is not None:
                projected[:, num_axes:] += wording.sums(self._words) @ self._on_words
        design = np.empty((len(projected), self._width))
        labels = design[:, :num_labels]
        self._find_labels(projected[:, num_axes : num_axes + num_labels], labels)
        principal = projected[:, :num_axes]
        for product in self._products:
            one = labels[:, product.labels, None]
            other = principal[:, None, : product.num_axes]
            shape = (len(design), one.shape[1], other.shape[2])
            np.multiply(one, other, out=design[:, product.columns].reshape(shape))
        if self._bumps is not None:
            self._find_bumps(labels, style, principal, design[:, self._bumps])
        estimate = design @ self._weights
        estimate += projected[:, num_axes + num_labels :]
        return np.asarray(estimate)

    def _find_labels(self, logit: Float64, labels: Float64) -> None:
        """Write the softmax of each kind's logits to ``labels``; the logits are used up."""
        for group in self._groups.values():
            own = logit[:, group]
            own -= np.maximum.reduce(own, axis=1, keepdims=True)
        np.exp(logit, out=labels)
        for group in self._groups.values():
            own = labels[:, group]
            own /= np.add.reduce(own, axis=1, keepdims=True)

    def _find_bumps(
        self, labels: Float64, style: Float64 | None, principal: Float64, bumps: Float64
    ) -> None:
        """Write the bumps at all landmarks, as ``Landmarks.design`` finds them."""
        num_labels = labels.shape[1]
        first_axis = num_labels + self._num_styles
        points = np.empty((len(labels), first_axis + principal.shape[1]))
        np.sqrt(labels, out=points[:, :num_labels])
        points[:, num_labels:first_axis] = 0.0 if style is None else STYLE_IN_DISTANCE * style
        points[:, first_axis:] = principal
        exponent = points @ self._centres
        exponent -= self._lengths
        exponent -= self._sharpness * np.einsum("nd,nd->n", points, points)[:, None]
        np.minimum(exponent, 0.0, out=exponent)
        np.exp(exponent, out=bumps)
