"""The Similarity-Distance-Magnitude activation and the adaptor whose outputs it reads.

A softmax knows how large an output is (magnitude). This activation also asks how many of the
nearest training points were predicted alike and rightly (similarity q), and how usual the distance
to the nearest one is (distance d in [0, 1])::

    sdm(z)_i = (2 + q)^(d z_i) / sum_c (2 + q)^(d z_c)

At q = e - 2 and d = 1 it is the softmax, at d = 0 it is uniform, and the largest output stays the
largest unless d = 0.

Schmaltz, Similarity-Distance-Magnitude Activations (2025), the successor of the estimator in
Similarity-Distance-Magnitude Universal Verification (arXiv 2502.20167).

Axes: N rows, D input width, M exemplar width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import e
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError

Float = npt.NDArray[np.floating[Any]]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]

SOFTMAX_SIMILARITY = e - 2  # the similarity at which the base is e


def sdm(logit_NC: Float, similarity_N: npt.ArrayLike, distance_N: npt.ArrayLike) -> Float64:
    """Return the activation, float64 (N, C), rows summing to one.

    Parameters
    ----------
    logit_NC : outputs, shape (N, C)
    similarity_N : q >= 0, shape (N,) or one number
    distance_N : d in [0, 1], shape (N,) or one number
    """
    power = _log_base(similarity_N) * np.asarray(distance_N, dtype=np.float64)
    scaled = np.asarray(logit_NC, dtype=np.float64) * np.atleast_1d(power)[:, None]
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))


def sdm_loss(
    logit_NC: Float, label_N: Ints, similarity_N: npt.ArrayLike, distance_N: npt.ArrayLike
) -> Float64:
    """Return ``-log_(2+q) sdm(z)_label``, float64 (N,): the log loss in base 2 + q."""
    power = _log_base(similarity_N) * np.asarray(distance_N, dtype=np.float64)
    scaled = np.asarray(logit_NC, dtype=np.float64) * np.atleast_1d(power)[:, None]
    scaled -= scaled.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(scaled).sum(axis=1))
    chosen = scaled[np.arange(len(label_N)), label_N]
    return np.asarray((log_total - chosen) / _log_base(similarity_N))


def class_balanced_mean(value_N: Float, label_N: Ints) -> float:
    """Return the mean over classes of each class's mean, so that a rare class counts as much."""
    return float(np.mean([value_N[label_N == c].mean() for c in np.unique(label_N)]))


def _log_base(similarity_N: npt.ArrayLike) -> Float64:
    return np.log(2 + np.asarray(similarity_N, dtype=np.float64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptor:
    """Two linear maps over a frozen vector: to its exemplar, and from that to class outputs.

    ``exemplar = G (x - mean) / scale + g`` and ``logit = W exemplar + w``.

    Attributes
    ----------
    mean, scale : float64 (), of all numbers of the training split
    g_weight, g_bias : float32 (M, D) and (M,)
    w_weight, w_bias : float32 (C, M) and (C,)
    """

    mean: Float64
    scale: Float64
    g_weight: Float32
    g_bias: Float32
    w_weight: Float32
    w_bias: Float32

    @classmethod
    def initial(cls, x_ND: Float32, num_classes: int, width: int, rng: np.random.Generator) -> Self:
        """Return an untrained adaptor for these training rows: uniform in +-1 / sqrt(inputs)."""

        def uniform(outputs: int, inputs: int) -> tuple[Float32, Float32]:
            bound = 1 / np.sqrt(inputs)
            weight = rng.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)
            return weight, rng.uniform(-bound, bound, outputs).astype(np.float32)

        g_weight, g_bias = uniform(width, x_ND.shape[1])
        w_weight, w_bias = uniform(num_classes, width)
        spread = float(x_ND.std(dtype=np.float64))
        return cls(
            mean=np.array(x_ND.mean(dtype=np.float64)),
            scale=np.array(spread if spread > 0 else 1.0),
            g_weight=g_weight,
            g_bias=g_bias,
            w_weight=w_weight,
            w_bias=w_bias,
        )

    @property
    def num_classes(self) -> int:
        return len(self.w_bias)

    def standardise(self, x_ND: Float) -> Float32:
        """Return the inputs on the scale of the training split, float32 (N, D).

        Raises InputError where they are not numbers (N, D), or not finite.
        """
        width = self.g_weight.shape[1]
        if x_ND.ndim != 2 or x_ND.shape[1] != width:
            raise InputError(
                f"verifier: expected vectors of shape (N, {width}), got {x_ND.shape}; "
                "use the features it was fitted on"
            )
        if not np.isfinite(x_ND).all():
            raise InputError("verifier: the vectors hold NaN or infinity; remove those rows")
        return np.asarray((x_ND - float(self.mean)) / float(self.scale), dtype=np.float32)

    def exemplars(self, x_ND: Float) -> Float32:
        """Return the exemplar vectors, float32 (N, M)."""
        return np.asarray(self.standardise(x_ND) @ self.g_weight.T + self.g_bias)

    def logits(self, exemplar_NM: Float32) -> Float32:
        """Return the class outputs, float32 (N, C)."""
        return np.asarray(exemplar_NM @ self.w_weight.T + self.w_bias)

    def state(self) -> Arrays:
        """Return the parameters as arrays."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
