"""Combining estimators without fooling oneself: folds, weights learned out of fold, when to route.

Shapes: N prompts, K models, M members. Members predict deviations of the scores from the model
means. Wolpert, Stacked generalization (1992); non-negative weights after Breiman, Stacked
regressions (1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_BONUSES = np.concatenate([[0.0], np.geomspace(0.002, 0.5, 28)])


def grouped_folds(rows_ND: Float, num_folds: int, rng: np.random.Generator) -> Ints:
    """Return a fold for each row, shape (N,), equal rows together: a copy is no held-out case.

    Folds hold about equally many distinct rows; some stay empty when there are fewer than folds.
    """
    _, group_N = np.unique(np.asarray(rows_ND), axis=0, return_inverse=True)
    group_N = group_N.ravel()
    order = rng.permutation(int(group_N.max()) + 1) % num_folds
    return np.asarray(order[group_N], dtype=np.intp)


def contrasts(value_NK: Float) -> Float64:
    """Return each row less its mean over the known cells; 0 where unknown (NaN)."""
    known = np.isfinite(value_NK)
    value = np.where(known, value_NK, 0.0).astype(np.float64)
    mean = value.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    return np.where(known, value - mean, 0.0)


def stack_weights(
    members: Sequence[Float], target_NK: Float, *, strength: float = 0.1
) -> tuple[Float64, Float64]:
    """Return two vectors of M non-negative weights, for contrasts and for the common part.

    What differs between models on one prompt (the contrast: all that routing needs) and what is
    common to them (how hard the prompt is: most of the variance) are predicted by different
    members. Both are weighted by ridge-stabilised non-negative least squares on predictions made
    out of fold; ``strength`` times the mean diagonal of the normal equations is the ridge, which
    spreads weight over members that say the same. NaN targets are left out.
    """
    known = np.isfinite(target_NK)
    contrast, common = _parts(np.where(known, target_NK, 0.0), known)
    parts = [_parts(np.asarray(member, dtype=np.float64), known) for member in members]
    return (
        _non_negative([part[0] for part in parts], contrast, strength),
        _non_negative([part[1] for part in parts], common, strength),
    )


def blend(
    coefficients: Sequence[Float], contrast_M: Float64, common_M: Float64
) -> list[npt.NDArray[Any]]:
    """Weigh each member's coefficients (P, K): contrasts and common part apart.

    Predictions are linear in the coefficients, so weighing these once replaces weighing every
    prediction.
    """
    weighed = []
    for w, contrast, common in zip(coefficients, contrast_M, common_M, strict=True):
        mean = w.mean(axis=1, keepdims=True)
        weighed.append(contrast * (w - mean) + common * mean)
    return weighed


def best_single_bonus(estimate_NK: Float, score_NK: Float, best: int) -> float:
    """Return what to add to the best single model's estimate so that leaving it pays.

    The smallest bonus under which routing beats always taking column ``best`` by at least one
    standard error, on estimates made out of fold; where none does, one so large that no training
    prompt leaves it. A prompt where the chosen model was not run counts as no gain.
    """
    rows = np.flatnonzero(np.isfinite(score_NK[:, best]))
    lead_NK = estimate_NK[rows] - estimate_NK[rows, best][:, None]
    gain_NK = np.nan_to_num(score_NK[rows] - score_NK[rows, best][:, None], nan=0.0)
    lead_NK[:, best] = 0.0
    rival_N = lead_NK.argmax(axis=1)
    lead_N = lead_NK[np.arange(len(rows)), rival_N]
    gain_N = gain_NK[np.arange(len(rows)), rival_N]
    for bonus in _BONUSES:
        gained = np.where(lead_N > bonus, gain_N, 0.0)
        if gained.any() and gained.mean() * np.sqrt(len(rows)) >= gained.std():
            return float(bonus)
    return float(max(lead_N.max(initial=0.0), 0.0))


def _parts(value_NK: Float64, known_NK: npt.NDArray[np.bool_]) -> tuple[Float64, Float64]:
    """Split into contrast and common part, both (N, K), both 0 where unknown."""
    contrast = contrasts(np.where(known_NK, value_NK, np.nan))
    return contrast, np.where(known_NK, value_NK - contrast, 0.0)


def _non_negative(predictions: Sequence[Float64], target: Float64, strength: float) -> Float64:
    from scipy.optimize import nnls

    design = np.stack([p.ravel() for p in predictions], axis=1)
    gram = design.T @ design
    scale = float(np.trace(gram)) / len(gram)
    if scale <= np.finfo(np.float64).tiny:  # nothing predicted, for instance by a single model
        return np.zeros(len(gram))
    root = np.linalg.cholesky(gram + max(strength, 1e-9) * scale * np.eye(len(gram)))
    weights, _ = nnls(root.T, np.linalg.solve(root, design.T @ target.ravel()))
    return np.asarray(weights, dtype=np.float64)
