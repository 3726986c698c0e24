"""K-means, in the few lines this package needs, reproducible from a generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]


def squared_lengths(rows_ND: Float) -> Float:
    """Return the squared length of each row, shape (N,)."""
    return np.asarray(np.einsum("nd,nd->n", rows_ND, rows_ND))


def squared_distances(points_ND: Float, centres_CD: Float, lengths_C: Float | None = None) -> Float:
    """Return squared Euclidean distances, shape (N, C), never below 0.

    ``lengths_C`` are the centres' squared lengths, where they are at hand.
    """
    if lengths_C is None:
        lengths_C = squared_lengths(centres_CD)
    distance_NC = points_ND @ centres_CD.T
    distance_NC *= -2.0
    distance_NC += lengths_C
    distance_NC += squared_lengths(points_ND)[:, None]
    return np.asarray(np.maximum(distance_NC, 0.0, out=distance_NC))


def kmeans(
    points_ND: Float, num_centres: int, rng: np.random.Generator, *, steps: int = 10
) -> Float64:
    """Return up to ``num_centres`` centres, shape (C, D), C >= 1.

    Lloyd's iterations from random distinct points. Centres that lose all their points are dropped,
    so duplicated points give fewer centres. ``points_ND`` holds at least one row.
    """
    points = np.asarray(points_ND, dtype=np.float32)
    distinct = np.unique(points, axis=0)
    chosen = rng.choice(len(distinct), min(num_centres, len(distinct)), replace=False)
    centres: Float = distinct[np.sort(chosen)]
    for _ in range(steps):
        nearest = squared_distances(points, centres).argmin(axis=1)
        counts = np.bincount(nearest, minlength=len(centres))
        order = np.argsort(nearest, kind="stable")
        filled = counts > 0
        starts = (np.cumsum(counts) - counts)[filled]
        sums = np.add.reduceat(points[order], starts, axis=0)
        centres = sums / counts[filled, None].astype(np.float32)
    return np.asarray(centres, dtype=np.float64)
