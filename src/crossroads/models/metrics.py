"""What is measured on the answers of backbones: word error rate, and distance of Gaussians."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError

Float64 = npt.NDArray[np.float64]


def edit_distance(reference: Sequence[Hashable], found: Sequence[Hashable]) -> int:
    """Return the fewest insertions, deletions and substitutions between two sequences.

    Levenshtein (1966), all at cost 1.

    >>> edit_distance("kitten", "sitting")
    3
    """
    above = list(range(len(found) + 1))
    for row, wanted in enumerate(reference, start=1):
        here = [row]
        for column, item in enumerate(found, start=1):
            kept = above[column - 1] + (wanted != item)
            here.append(min(kept, above[column] + 1, here[-1] + 1))
        above = here
    return above[-1]


def word_error_rate(pairs: Iterable[tuple[Sequence[Hashable], Sequence[Hashable]]]) -> float:
    """Return all edits over all reference words, of (reference, found) pairs of word sequences.

    May exceed 1. Raises InputError when the references hold no word.

    >>> word_error_rate([(["one", "two"], ["one"]), (["six", "six"], ["six", "six"])])
    0.25
    """
    edits = words = 0
    for reference, found in pairs:
        edits += edit_distance(reference, found)
        words += len(reference)
    if not words:
        raise InputError("references: expected at least one word, got none")
    return edits / words


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of features."""

    mean: Float64
    covariance: Float64

    @classmethod
    def of(cls, features: npt.NDArray[np.floating]) -> Gaussian:
        """Return the moments of rows (N, D), the covariance with N - 1.

        Raises InputError for fewer than two rows or values that are not finite.
        """
        if features.ndim != 2 or len(features) < 2:
            raise InputError(f"features: expected shape (N, D) with N >= 2, got {features.shape}")
        if not np.isfinite(features).all():
            raise InputError("features: expected finite values; some samples diverged")
        rows = features.astype(np.float64)
        centred = rows - rows.mean(axis=0)
        return cls(mean=rows.mean(axis=0), covariance=centred.T @ centred / (len(rows) - 1))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Dowson and Landau 1982).

    The squared 2-Wasserstein distance of the Gaussians. The trace of the root is taken from the
    eigenvalues of the symmetric ``S1^(1/2) S2 S1^(1/2)``, which exist for singular covariances
    too: fewer samples than dimensions need no jitter.
    """
    root = _symmetric_root(one.covariance)
    inner = np.linalg.eigvalsh(root @ other.covariance @ root)
    trace = float(np.sqrt(np.clip(inner, 0, None)).sum())
    apart = float(np.square(one.mean - other.mean).sum())
    spread = float(np.trace(one.covariance) + np.trace(other.covariance))
    return max(0.0, apart + spread - 2 * trace)


def _symmetric_root(matrix: Float64) -> Float64:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
