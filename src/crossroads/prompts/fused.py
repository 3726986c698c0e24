"""Router ``auto`` at work: the sum of its members in four matrix products.

Member by member the estimate takes dozens of small array operations, whose overhead is most of the
time of a single prompt. All that is linear in the embedding, the style or the words is therefore
projected at once, and all that the labels and bumps add is one more product:

    prompt  -> principal axes, logits of the labels, linear estimate      (one projection)
    logits  -> labels, their products with the axes, bumps at landmarks   (one design)
    design  -> deviation of each model

The result is that of the members' own designs, but for rounding in the last bits.

What then remains of the overhead is making arrays and views of them. Small batches work in arrays
that are kept (``_Space``) and laid out so that every step reads and writes them in place.

Shapes: N prompts, D embedding, S style (0 where nothing was learnt from texts), R principal axes,
C labels of all kinds, K models.
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

_KEPT_ROWS = 16  # prompts of the batches whose arrays are kept: those of a server


@dataclass(frozen=True, slots=True)
class _Product:
    """Labels of one kind times principal axes: which labels, how many axes, where it is put."""

    labels: slice
    num_axes: int
    columns: slice


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where everything lies in the arrays of a ``_Space``.

    Attributes
    ----------
    num_inputs : D
    num_styles, num_labels, num_axes, num_models : S, C, R, K
    groups : the labels of each kind
    products : in the design
    bumps : in the design
    width : of the design
    """

    num_inputs: int
    num_styles: int
    num_labels: int
    num_axes: int
    num_models: int
    groups: tuple[slice, ...]
    products: tuple[_Product, ...]
    bumps: slice
    width: int


class _Space:
    """The arrays of one batch of N prompts, and the views of them that the steps work on.

    A row of ``_inputs`` is [embedding D, style S, 1]. One of ``_points`` begins with what has a
    distance to the landmarks, and goes on with what the same product yields:
    [roots of labels C, style S, axes R, 1, squared length, logits C, linear estimate K].
    """

    def __init__(self, layout: _Layout, num_rows: int) -> None:
        first_style = layout.num_labels
        first_axis = first_style + layout.num_styles
        one = first_axis + layout.num_axes
        logits = one + 2
        linear = logits + layout.num_labels
        inputs = np.ones((num_rows, layout.num_inputs + layout.num_styles + 1))
        points = np.empty((num_rows, linear + layout.num_models))
        design = np.empty((num_rows, layout.width))
        labels = design[:, : layout.num_labels]
        self.inputs, self.design, self.labels = inputs, design, labels
        self.embeddings = inputs[:, : layout.num_inputs]
        self.style = inputs[:, layout.num_inputs : -1]
        self.projected = points[:, first_axis:]
        self.points = points[:, :logits]
        self.roots = points[:, :first_style]
        self.distance_style = points[:, first_style:first_axis]
        self.with_length = points[:, first_style:one]
        self.squared_length = points[:, one + 1]
        self.logits = points[:, logits:linear]
        self.on_words = points[:, logits:]
        self.linear = points[:, linear:]
        self.bumps = design[:, layout.bumps]
        self.groups = [(self.logits[:, group], labels[:, group]) for group in layout.groups]
        self.products = []
        for product in layout.products:
            one_kind = labels[:, product.labels, None]
            axes = points[:, None, first_axis : first_axis + product.num_axes]
            shape = (num_rows, one_kind.shape[1], product.num_axes)
            out = design[:, product.columns].reshape(shape)
            self.products.append((one_kind, axes, out))


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
        self._num_styles = NUM_STYLES if reader.reads_texts else 0
        self._project(classifiers, weights, intercept)
        self._read_words(classifiers, weights, len(intercept))
        self._layout = self._lay_out(weights, landmarks, len(intercept))
        self._place(landmarks)
        self._spaces: dict[int, _Space] = {}

    def _project(
        self, classifiers: Mapping[str, DomainClassifier], weights: Weights, intercept: Float64
    ) -> None:
        """Stack what is linear in embedding, style and 1: (D + S + 1, R + 2 + C + K)."""
        dim, num_axes = self._reader.axes.shape
        linear = weights.get("linear", np.zeros((dim + NUM_STYLES, len(intercept))))
        logit = [known.parts(dim) for known in classifiers.values()]
        free = np.zeros((dim, 2))  # for the 1 and the squared length
        on_embedding = [self._reader.axes, free, *(part.embedding for part in logit), linear[:dim]]
        on_style = [
            np.zeros((NUM_STYLES, num_axes + 2)),
            *(part.style for part in logit),
            STYLE_IN_DESIGN * linear[dim : dim + NUM_STYLES],
        ]
        one = np.array([1.0, 0.0])
        constant = [np.zeros(num_axes), one, *(part.bias for part in logit), intercept]
        embedding: Float64 = np.concatenate(on_embedding, axis=1)
        style: Float64 = np.concatenate(on_style, axis=1)[: self._num_styles]
        bias: Float64 = np.concatenate(constant) - self._reader.mean @ embedding
        self._projection: Float64 = np.concatenate([embedding, style, bias[None]])

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

    def _lay_out(self, weights: Weights, landmarks: Landmarks, num_models: int) -> _Layout:
        """Place labels, products and bumps in one design, and stack their weights."""
        labels = np.zeros((self._num_labels, num_models))
        stacked = [labels]
        products: list[_Product] = []
        width = self._num_labels
        for kind, group in self._groups.items():
            if kind in weights:
                own = weights[kind]
                count = group.stop - group.start
                labels[group] += own[:count]
                columns = slice(width, width + len(own) - count)
                products.append(_Product(group, (len(own) - count) // count, columns))
                stacked.append(own[count:])
                width = columns.stop
        dim, num_axes = self._reader.axes.shape
        if "linear" in weights:
            labels += weights["linear"][dim + NUM_STYLES :]
        bumps = slice(width, width)
        if "landmarks" in weights:
            bumps = slice(width, width + len(landmarks.centres))
            stacked.append(weights["landmarks"])
        self._weights: Float64 = np.asfortranarray(np.concatenate(stacked))  # the faster by half
        return _Layout(
            num_inputs=dim,
            num_styles=self._num_styles,
            num_labels=self._num_labels,
            num_axes=num_axes,
            num_models=num_models,
            groups=tuple(self._groups.values()),
            products=tuple(products),
            bumps=bumps,
            width=bumps.stop,
        )

    def _place(self, landmarks: Landmarks) -> None:
        """Turn centres into columns whose product with a point is the exponent of its bump.

        Of a point, the roots of each kind's labels have length 1: only the rest must be measured.
        """
        self._has_bumps = self._layout.bumps.stop > self._layout.bumps.start
        if not self._has_bumps:
            return
        centres = landmarks.centres
        if not self._num_styles:  # theirs are all 0 then
            style = slice(self._num_labels, self._num_labels + NUM_STYLES)
            centres = np.delete(centres, style, axis=1)
        sharpness = landmarks.sharpness
        constant = -sharpness * (landmarks.lengths + len(self._groups))
        squared_length = np.full(len(centres), -sharpness)
        parts = [2.0 * sharpness * centres.T, constant[None], squared_length[None]]
        self._centres: Float64 = np.ascontiguousarray(np.concatenate(parts))

    def estimate(self, queries: Queries) -> Float64:
        """Return the estimated quality of each model, (N, K)."""
        num_rows = len(queries.embeddings)
        # Taken out while it is used: another thread that estimates makes one of its own.
        space = self._spaces.pop(num_rows, None) or _Space(self._layout, num_rows)
        self._find_logits(queries, space)
        self._find_labels(space)
        for labels, axes, out in space.products:
            np.multiply(labels, axes, out=out)
        if self._has_bumps:
            self._find_bumps(space)
        estimate: Float64 = space.design @ self._weights
        estimate += space.linear
        if num_rows <= _KEPT_ROWS:
            self._spaces[num_rows] = space
        return estimate

    def _find_logits(self, queries: Queries, space: _Space) -> None:
        """Write the axes, the logits and the linear estimate; and the style."""
        space.embeddings[...] = queries.embeddings
        wording = self._reader.wording(queries)
        if self._num_styles:
            space.style[...] = 0.0 if wording is None else self._reader.standardised(wording)
            np.multiply(space.style, STYLE_IN_DISTANCE, out=space.distance_style)
        np.matmul(space.inputs, self._projection, out=space.projected)
        if wording is not None and self._words is not None:
            space.on_words += wording.sums(self._words) @ self._on_words

    def _find_labels(self, space: _Space) -> None:
        """Write the softmax of each kind's logits; the logits are used up."""
        for logits, _ in space.groups:
            top = np.maximum.reduce(logits, axis=1, keepdims=True)
            np.subtract(logits, top, out=logits)
        np.exp(space.logits, out=space.labels)
        for _, labels in space.groups:
            total = np.add.reduce(labels, axis=1, keepdims=True)
            np.divide(labels, total, out=labels)

    def _find_bumps(self, space: _Space) -> None:
        """Write the bumps at all landmarks, as ``Landmarks.design`` finds them."""
        np.sqrt(space.labels, out=space.roots)
        rest = space.with_length
        np.einsum("nd,nd->n", rest, rest, out=space.squared_length)
        np.matmul(space.points, self._centres, out=space.bumps)
        np.exp(space.bumps, out=space.bumps)
