"""A support vector machine for each model: is it right on this prompt?

The SVM router of the LLMRouter library (2025) classifies which model is best; here each model has
its own machine "right or wrong", so that a prompt several models can answer is no contradiction.
Primal linear SVM with the squared hinge (Chang, Hsieh and Lin, JMLR 9, 2008):

    min_w  penalty / 2 |w_k|^2 + sum_i s_ik h(w_k.x_i + c_k)^2 + (1 - s_ik) h(-w_k.x_i - c_k)^2

with h(z) = max(0, 1 - z); a graded score s counts as a case of either class with weights s and
1 - s. ``kernel=rbf`` maps prompts to random Fourier features of exp(-gamma |x - y|^2) first (Rahimi
and Recht, NeurIPS 2007), in place of the dual with its support vectors. Probabilities by Platt
scaling on held-out prompts, with slopes shared by the models and each model's mean score kept:
models with lines of their own are chosen for the noise of their offsets. The penalty is the
candidate whose probabilities tell the models apart best there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.calibration import ScaledLogits, contrast_error
from crossroads.prompts.gradient import hold_out
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]

KERNELS = ("linear", "rbf")
_PENALTIES = (10.0, 100.0, 1000.0)
_HELD_OUT = 0.25
_STEPS = 40


@dataclass(kw_only=True)
class SupportVectors(PromptRouter):
    """One machine a model, linear or on random Fourier features, and a sigmoid of its margin.

    Parameters
    ----------
    kernel : ``linear`` or ``rbf``
    features : random features of the ``rbf`` kernel, >= 1
    gamma : its sharpness on unit rows, > 0
    """

    name = "svm"
    summary = "a support vector machine for each model"

    kernel: str = "linear"
    features: int = 256
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise unknown_name("kernel of router 'svm':", self.kernel, KERNELS)
        if self.features < 1 or not 0 < self.gamma < np.inf:
            raise UsageError(
                f"router 'svm': expected features >= 1 and gamma > 0, got {self.settings!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        dim = data.embeddings.shape[1]
        self._waves = np.zeros((dim, 0))
        self._phases = np.zeros(0)
        if self.kernel == "rbf":
            self._waves = rng.normal(scale=np.sqrt(2.0 * self.gamma), size=(dim, self.features))
            self._phases = rng.uniform(0.0, 2.0 * np.pi, self.features)
        x = self._map(data.embeddings).astype(np.float32)
        train, valid = hold_out(data.embeddings, _HELD_OUT, rng)
        score_VK, mean_K = data.scores[valid], data.mean_scores()
        least = np.inf
        for candidate in _PENALTIES:
            weights = squared_hinge_machines(x[train], data.scores[train], candidate)
            raw = _margins(x, weights)
            scale = ScaledLogits.fit(raw, raw[valid], score_VK, mean_K)
            error = contrast_error(scale(raw[valid]), score_VK, mean_K)
            if error < least:
                least, penalty, self._scale = error, candidate, scale
        self._weights = squared_hinge_machines(x, data.scores, penalty)
        self._scale = self._scale.with_centre(_margins(x, self._weights))

    def _map(self, rows_ND: Float) -> Float64:
        x = np.asarray(rows_ND, dtype=np.float64)
        if self.kernel == "linear":
            return x
        return np.asarray(np.sqrt(2.0 / self.features) * np.cos(x @ self._waves + self._phases))

    def _predict(self, queries: Queries) -> Float64:
        return self._scale(_margins(self._map(queries.embeddings), self._weights))

    def _state(self) -> Arrays:
        return {
            "weights": self._weights,
            "waves": self._waves,
            "phases": self._phases,
            **self._scale.state(),
        }

    def _restore(self, arrays: Arrays) -> None:
        self._weights, self._scale = arrays["weights"], ScaledLogits.restore(arrays)
        self._waves, self._phases = arrays["waves"], arrays["phases"]


def _margins(x_NP: Float, weights: Float64) -> Float64:
    return np.asarray(x_NP @ weights[:-1] + weights[-1])


def squared_hinge_machines(design_NP: Float, score_NK: Float, penalty: float) -> Float64:
    """Return (P + 1, K) weights, the last row the bias; NaN scores are left out."""
    from scipy.optimize import minimize

    x = np.asarray(design_NP, dtype=np.float32)
    known = np.isfinite(score_NK)
    right = np.where(known, score_NK, 0.0).astype(np.float32)
    wrong = np.where(known, 1.0 - score_NK, 0.0).astype(np.float32)
    shape = (x.shape[1] + 1, score_NK.shape[1])

    def value_and_gradient(flat: Float64) -> tuple[float, Float64]:
        w = flat.reshape(shape)
        margin = x @ w[:-1].astype(np.float32) + w[-1].astype(np.float32)
        short, long = np.maximum(1.0 - margin, 0.0), np.maximum(1.0 + margin, 0.0)
        value = float((right * short**2 + wrong * long**2).sum(dtype=np.float64))
        slope = 2.0 * (wrong * long - right * short)
        gradient = np.empty(shape)
        gradient[:-1] = x.T @ slope + penalty * w[:-1]
        gradient[-1] = slope.sum(axis=0, dtype=np.float64)
        return value + 0.5 * penalty * float(np.square(w[:-1]).sum()), gradient.ravel()

    found = minimize(
        value_and_gradient,
        np.zeros(shape[0] * shape[1]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _STEPS},
    )
    return np.asarray(found.x.reshape(shape), dtype=np.float64)
