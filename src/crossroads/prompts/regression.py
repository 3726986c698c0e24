"""Linear estimators of the scores of K models from a shared design, missing cells allowed.

Shapes: N prompts, P design columns, K models or classes. A target of NaN is a model that was not
run on that prompt; its column is fitted on the other prompts. Everything is fitted for all models
at once, so that the cost hardly grows with K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


def ridge(
    design_NP: Float, target_NK: Float, penalties: Sequence[float], fold_N: Ints
) -> tuple[Float64, Float64]:
    """Return ridge coefficients for each penalty, and predictions held out fold by fold.

    The design is expected centred and the target without its mean: there is no intercept. The Gram
    matrix is built once, by folds; leaving one out, or the few prompts a model was not run on, is a
    subtraction.

    Returns
    -------
    coefficients : (L, P, K) for L penalties, fitted on all prompts
    held_out : (L, N, K), each prompt predicted without the prompts of its fold
    """
    x = np.asarray(design_NP, dtype=np.float32)  # half the time of float64; solved in float64
    known_KN = np.isfinite(target_NK).T
    folds = [np.flatnonzero(fold_N == j) for j in range(int(fold_N.max()) + 1)]
    whole = [_gram(x[rows]) for rows in folds]
    shape = (len(penalties), x.shape[1], target_NK.shape[1])
    coefficients = np.zeros(shape)
    held_out = np.zeros((len(penalties), *target_NK.shape))
    patterns, which_K = np.unique(known_KN, axis=0, return_inverse=True)
    for g, known_N in enumerate(patterns):
        columns = np.flatnonzero(which_K.ravel() == g)
        grams = [_known_gram(x[r], whole[j], known_N[r]) for j, r in enumerate(folds)]
        y = np.where(known_N[:, None], target_NK[:, columns], 0.0).astype(np.float32)
        moments = [(x[r].T @ y[r]).astype(np.float64) for r in folds]
        gram, moment = np.sum(grams, axis=0), np.sum(moments, axis=0)
        for i, penalty in enumerate(penalties):
            coefficients[i][:, columns] = _solve(gram, moment, penalty)
            for j, rows in enumerate(folds):
                without = _solve(gram - grams[j], moment - moments[j], penalty)
                held_out[i][np.ix_(rows, columns)] = x[rows] @ without
    return coefficients, held_out


def _gram(x: Float) -> Float64:
    return np.asarray((x.T @ x).astype(np.float64))


def _known_gram(x_nP: Float, whole_PP: Float64, known_n: npt.NDArray[np.bool_]) -> Float64:
    """Gram matrix of the known rows, by whichever of known and missing is fewer."""
    if known_n.all():
        return whole_PP
    if known_n.mean() > 0.5:
        return whole_PP - _gram(x_nP[~known_n])
    return _gram(x_nP[known_n])


def _solve(gram_PP: Float64, moment_PK: Float64, penalty: float) -> Float64:
    solution = np.linalg.solve(gram_PP + penalty * np.eye(len(gram_PP)), moment_PK)
    return np.asarray(solution, dtype=np.float64)


def sparse_ridge(words: Any, target_NK: Float, penalty: float, steps: int = 12) -> Float64:
    """Return ridge coefficients (V, K) of a sparse design (N, V) by conjugate gradients.

    Each column is its own system, all advance together. Stopping after a few steps is further
    shrinkage, which bag-of-words regressions need.
    """
    known_NK = np.isfinite(target_NK)
    residual = words.T @ np.where(known_NK, target_NK, 0.0)
    solution = np.zeros_like(residual)
    direction = residual.copy()
    norm_K = np.square(residual).sum(axis=0)
    for _ in range(steps):
        image = words.T @ np.where(known_NK, words @ direction, 0.0) + penalty * direction
        curvature_K = (direction * image).sum(axis=0)
        length_K = norm_K / np.maximum(curvature_K, np.finfo(np.float64).tiny)
        solution += length_K * direction
        residual -= length_K * image
        next_K = np.square(residual).sum(axis=0)
        direction = residual + next_K / np.maximum(norm_K, np.finfo(np.float64).tiny) * direction
        norm_K = next_K
    return np.asarray(solution)


def softmax_regression(
    design_NP: Float, label_N: Ints, num_classes: int, *, penalty: float, steps: int = 50
) -> Float64:
    """Return (P + 1, C) weights of a multinomial logistic regression; the last row is the bias."""
    target_NC = np.zeros((len(label_N), num_classes))
    target_NC[np.arange(len(label_N)), label_N] = 1.0

    def loss(logit_NC: Float64) -> tuple[float, Float64]:
        shifted = logit_NC - logit_NC.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        value = float(log_total.sum() - (shifted * target_NC).sum())
        return value, np.exp(shifted - log_total) - target_NC

    return _descend(design_NP, num_classes, loss, penalty, steps)


def logistic_regressions(
    design_NP: Float, target_NK: Float, *, penalty: float, steps: int = 50
) -> Float64:
    """Return (P + 1, K) weights of K logistic regressions on targets in [0, 1]; last row: bias."""
    known_NK = np.isfinite(target_NK)
    y_NK = np.where(known_NK, target_NK, 0.0)

    def loss(logit_NK: Float64) -> tuple[float, Float64]:
        value = float(((np.logaddexp(0.0, logit_NK) - y_NK * logit_NK) * known_NK).sum())
        return value, (sigmoid(logit_NK) - y_NK) * known_NK

    return _descend(design_NP, target_NK.shape[1], loss, penalty, steps)


def sigmoid(logit: Float) -> Float64:
    """Return 1 / (1 + exp(-logit)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)), dtype=np.float64)


def softmax(logit_NC: Float) -> Float64:
    """Return the softmax of each row."""
    exponent = np.exp(logit_NC - logit_NC.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True), dtype=np.float64)


def _descend(
    design_NP: Float,
    num_outputs: int,
    loss: Callable[[Float64], tuple[float, Float64]],
    penalty: float,
    steps: int,
) -> Float64:
    """Minimise loss(design W + bias) + penalty / 2 |W|^2 by L-BFGS; the bias is free."""
    from scipy.optimize import minimize

    x = np.asarray(design_NP, dtype=np.float32)
    shape = (x.shape[1] + 1, num_outputs)

    def value_and_gradient(flat: Float64) -> tuple[float, Float64]:
        w = flat.reshape(shape)
        logit = (x @ w[:-1].astype(np.float32)).astype(np.float64) + w[-1]
        value, slope = loss(logit)
        gradient = np.empty(shape)
        gradient[:-1] = x.T @ slope.astype(np.float32) + penalty * w[:-1]
        gradient[-1] = slope.sum(axis=0)
        return value + 0.5 * penalty * float(np.square(w[:-1]).sum()), gradient.ravel()

    start = np.zeros(shape[0] * shape[1])
    found = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": steps}
    )
    return np.asarray(found.x.reshape(shape), dtype=np.float64)
