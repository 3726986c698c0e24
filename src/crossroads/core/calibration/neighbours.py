"""Similarity and distance: what the labelled support says about a point.

Distances between all pairs are taken from one exact matrix product a block, squared, without an
index. The similarity q needs no sorting: the neighbours before the first failure are those
nearer than the nearest failure. Points as near as that failure do not count.

Axes: Q queries, S support points, M exemplar width, N points, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK = 1024  # queries in one matrix product


@dataclass(frozen=True, kw_only=True)
class Support:
    """Labelled points in exemplar space.

    Attributes
    ----------
    exemplar : float32 (S, M)
    prediction : int64 (S,), class the adaptor gives the point
    label : int64 (S,), its true class; anything outside the adaptor's classes makes the point a
        repellent, which matches no prediction
    row : int64 (S,), which row of the fitted data the point was; -1 for one added later
    """

    exemplar: Float32
    prediction: Ints
    label: Ints
    row: Ints

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def squared_norm(self) -> Float32:
        """Shape (S,)."""
        return np.asarray(np.einsum("sm,sm->s", self.exemplar, self.exemplar))

    def with_points(self, exemplar: Float32, prediction: Ints, label: Ints) -> Support:
        """Return the support with further points at its end."""
        return Support(
            row=np.concatenate([self.row, np.full(len(label), -1)]),
            exemplar=np.concatenate([self.exemplar, exemplar]),
            prediction=np.concatenate([self.prediction, prediction]),
            label=np.concatenate([self.label, label]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbourhood:
    """What the support says about Q queries.

    Attributes
    ----------
    similarity : int64 (Q,), q, at most the depth asked for
    nearest_distance : float64 (Q,), L2 distance to the nearest support point
    nearest : int64 (Q,), that point
    """

    similarity: Ints
    nearest_distance: Float64
    nearest: Ints


def neighbourhood(
    query_QM: Float32,
    prediction_Q: Ints,
    support: Support,
    *,
    depth: int,
    exclude_self: bool = False,
) -> Neighbourhood:
    """Return similarity and nearest distance of each query.

    Parameters
    ----------
    prediction_Q : class the adaptor gives each query
    depth : cap of the similarity
    exclude_self : the queries are the support points, in order, and do not see themselves
    """
    count = len(query_QM)
    similarity, nearest = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for start in range(0, count, _BLOCK):
        rows = slice(start, min(start + _BLOCK, count))
        squared_QS = _squared_distances(query_QM[rows], support)
        if exclude_self:
            own = np.arange(rows.start, rows.stop)
            squared_QS[own - start, own] = np.inf
        nearest[rows] = squared_QS.argmin(axis=1)
        similarity[rows] = _similarity(squared_QS, prediction_Q[rows], support)
    # Taken again as a difference: exact zeros for copies, no cancellation for near ones.
    gap = query_QM.astype(np.float64) - support.exemplar[nearest]
    return Neighbourhood(
        similarity=np.minimum(similarity, depth),
        nearest_distance=np.sqrt(np.einsum("qm,qm->q", gap, gap)),
        nearest=nearest,
    )


def nearest_points(query_QM: Float32, support: Support, count: int) -> tuple[Ints, Float64]:
    """Return the nearest support points of each query, (Q, count), and their L2 distances."""
    squared_QS = _squared_distances(query_QM, support)
    count = min(count, len(support))
    part = np.sort(np.argpartition(squared_QS, count - 1, axis=1)[:, :count])
    inside = np.argsort(np.take_along_axis(squared_QS, part, axis=1), axis=1, kind="stable")
    order = np.take_along_axis(part, inside, axis=1)
    distance = np.sqrt(np.take_along_axis(squared_QS, order, axis=1).astype(np.float64))
    return order.astype(np.int64), distance


def _squared_distances(query_QM: Float32, support: Support) -> Float32:
    own_Q = np.einsum("qm,qm->q", query_QM, query_QM)
    squared_QS = query_QM @ support.exemplar.T
    squared_QS *= -2
    squared_QS += own_Q[:, None]
    squared_QS += support.squared_norm
    return np.asarray(np.maximum(squared_QS, 0, out=squared_QS))


def _similarity(squared_QS: Float32, prediction_Q: Ints, support: Support) -> Ints:
    """Count the matching points nearer than the nearest one that does not match."""
    similarity = np.zeros(len(prediction_Q), np.int64)
    for c in np.unique(prediction_Q):
        matches_S = (support.prediction == c) & (support.label == c)
        rows = np.flatnonzero(prediction_Q == c)
        squared = squared_QS if len(rows) == len(prediction_Q) else squared_QS[rows]
        failure = np.where(matches_S, np.float32(np.inf), squared).min(axis=1)
        similarity[rows] = ((squared < failure[:, None]) & matches_S).sum(axis=1)
    return similarity


@dataclass(frozen=True, kw_only=True, slots=True)
class DistanceQuantiles:
    """Class-wise distribution of nearest distances, which turns one into d in [0, 1].

    Attributes
    ----------
    sorted_distance : one ascending float64 array a class
    """

    sorted_distance: tuple[Float64, ...]

    @classmethod
    def of(cls, found: Neighbourhood, label_N: Ints, num_classes: int) -> Self:
        """Take them from points with a similarity above 0, by true class."""
        usable = found.similarity > 0
        return cls(
            sorted_distance=tuple(
                np.sort(found.nearest_distance[usable & (label_N == c)]) for c in range(num_classes)
            )
        )

    def distance(self, nearest_distance_N: Float64) -> Float64:
        """Return ``d = min_c (1 - F_c)``, float64 (N,); F_c is the share strictly nearer.

        1 at a support point, 0 beyond every calibration point of some class, and 0 where a class
        has none.
        """
        each = [_share_at_or_beyond(s, nearest_distance_N) for s in self.sorted_distance]
        return np.asarray(np.min(each, axis=0))


def _share_at_or_beyond(ascending: Float64, value_N: Float64) -> npt.NDArray[Any]:
    if len(ascending) == 0:
        return np.zeros(len(value_N))
    return 1 - np.searchsorted(ascending, value_N, side="left") / len(ascending)
