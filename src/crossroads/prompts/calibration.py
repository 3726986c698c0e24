"""From the raw outputs of a learned router to probabilities, without believing them too much.

Shapes: N prompts, K models. Targets are scores in [0, 1], NaN = not run, taken as probabilities.
Slopes are learned on prompts that the raw outputs were not fitted to, so that a router which found
nothing ends at the mean score of each model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.prompts.gradient import Parameters, adam, hold_out
from crossroads.prompts.regression import sigmoid
from crossroads.prompts.router import Arrays, TrainingSet
from crossroads.prompts.stacking import contrasts

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_EXTREME = 1e-3  # a mean score this near 0 or 1 is not taken as certainty
_VALID_SHARE = 0.15


def log_odds(probability: Float) -> Float64:
    """Return log(p / (1 - p)), p kept away from 0 and 1 by 0.001."""
    p = np.clip(np.asarray(probability, dtype=np.float64), _EXTREME, 1.0 - _EXTREME)
    return np.asarray(np.log(p / (1.0 - p)))


def contrast_error(estimate_NK: Float, score_NK: Float, mean_K: Float64) -> float:
    """Return the squared error of the differences between models on one prompt.

    Both sides are taken relative to the model means; what is common to all models of a prompt does
    not count, since it decides nothing.
    """
    known = np.isfinite(score_NK)
    found, true = contrasts(estimate_NK - mean_K), contrasts(score_NK - mean_K)
    return float(np.square((found - true) * known).sum())


@dataclass(frozen=True, kw_only=True)
class ScaledLogits:
    """P_k = sigmoid(base_k + common u + contrast v_k), of raw outputs z_k less their mean.

    Platt, Probabilistic outputs for support vector machines (1999), with slopes shared by the
    models, so that no model is chosen for the noise of its own line.

    u is the mean over models of the centred outputs, v_k what model k has more than that. The base
    holds the log-odds of the mean scores, so both slopes at 0 leave the means.

    Attributes
    ----------
    centre, base : (K,)
    common, contrast : slopes >= 0
    """

    centre: Float64
    base: Float64
    common: float
    contrast: float

    @classmethod
    def fit(
        cls, raw_NK: Float, raw_valid_VK: Float, score_valid_VK: Float, mean_K: Float64
    ) -> Self:
        """Centre on all raw outputs (N, K), learn the two slopes on the held-out ones (V, K)."""
        centre, base = np.asarray(raw_NK, dtype=np.float64).mean(axis=0), log_odds(mean_K)
        z = raw_valid_VK - centre
        common = z.mean(axis=1, keepdims=True) * np.ones_like(z)
        parts = [common, z - common]
        scales = [max(float(np.sqrt(np.square(p).sum() / max(p.size, 1))), 1e-12) for p in parts]
        units = [part / scale for part, scale in zip(parts, scales, strict=True)]

        def logit(p: Float64) -> Float64:
            return np.asarray(base + p[0] * units[0] + p[1] * units[1])

        def slopes(error_NK: Float64) -> Float64:
            return np.array([(error_NK * unit).sum() for unit in units])

        known = np.isfinite(score_valid_VK)
        found = _log_loss_minimum(logit, slopes, score_valid_VK, known)
        return cls(
            centre=centre, base=base, common=found[0] / scales[0], contrast=found[1] / scales[1]
        )

    def with_centre(self, raw_NK: Float) -> Self:
        """Return the same slopes for outputs of another fit, centred on these."""
        return replace(self, centre=np.asarray(raw_NK, dtype=np.float64).mean(axis=0))

    def __call__(self, raw_NK: Float) -> Float64:
        z = raw_NK - self.centre
        common = z.mean(axis=1, keepdims=True)
        return sigmoid(self.base + self.common * common + self.contrast * (z - common))

    def state(self) -> Arrays:
        slopes = np.array([self.common, self.contrast])
        return {"scale_centre": self.centre, "scale_base": self.base, "scale_slopes": slopes}

    @classmethod
    def restore(cls, arrays: Arrays) -> Self:
        common, contrast = arrays["scale_slopes"].tolist()
        return cls(
            centre=arrays["scale_centre"],
            base=arrays["scale_base"],
            common=common,
            contrast=contrast,
        )


def train_scaled(
    data: TrainingSet,
    start: Callable[[], Sequence[npt.NDArray[np.float32]]],
    raw: Callable[[Parameters, Ints], Float],
    gradient: Callable[[Parameters, Ints], Parameters],
    rng: np.random.Generator,
    *,
    rate: float,
    decay: float,
    epochs: int,
) -> tuple[Parameters, ScaledLogits]:
    """Train raw outputs with Adam; stop on, and scale by, prompts held out of the training ones.

    Parameters
    ----------
    start : makes the parameters
    raw : outputs (n, K) of these parameters on a set of rows
    gradient : of the training loss on a batch of rows
    """
    mean_K = data.mean_scores()
    train, valid = hold_out(data.embeddings, _VALID_SHARE, rng)
    score_VK = data.scores[valid]

    def scaled(p: Parameters) -> tuple[ScaledLogits, Float]:
        raw_VK = raw(p, valid)
        centre = raw_VK if len(valid) else raw(p, train)
        return ScaledLogits.fit(centre, raw_VK, score_VK, mean_K), raw_VK

    def loss(p: Parameters) -> float:
        scale, raw_VK = scaled(p)
        return contrast_error(scale(raw_VK), score_VK, mean_K)

    batch = min(max(len(train) // 40, 16), 128)  # few prompts: small batches, for enough steps
    found = adam(
        start(), gradient, loss, train, rng, rate=rate, decay=decay, batch=batch, epochs=epochs
    )
    return found, scaled(found)[0]


def _log_loss_minimum(
    logit: Callable[[Float64], Float64],
    slopes: Callable[[Float64], Float64],
    score_NK: Float,
    known_NK: npt.NDArray[np.bool_],
) -> Float64:
    """Minimise the log loss over known cells plus half the squared pair of slopes, both >= 0."""
    from scipy.optimize import minimize

    y = np.where(known_NK, score_NK, 0.0).astype(np.float64)

    def value_and_gradient(p: Float64) -> tuple[float, Float64]:
        z = logit(p)
        value = float(((np.logaddexp(0.0, z) - y * z) * known_NK).sum())
        gradient = slopes((sigmoid(z) - y) * known_NK) + p
        return value + 0.5 * float(np.square(p).sum()), gradient

    bounds = [(0.0, None)] * 2
    found = minimize(value_and_gradient, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x, dtype=np.float64)
