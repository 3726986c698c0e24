"""Predicted loss of every expert on a prompt: one hidden layer on a frozen embedding.

    L_hat_k(x) = mean_k + sd_k * (gelu(x W1 + b1) W2)_k

The last layer starts at zero, so that an untrained predictor gives each expert its mean loss, and
the least of them is the best single expert. Training minimises the squared error of the
standardised losses; the state kept is the one whose *choices* cost least on held-out prompts, the
start included.

Shapes: N prompts, D features, H hidden units, K experts. Losses may have any scale; NaN = unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.prompts.gradient import Parameters, adam, hold_out

Arrays = dict[str, npt.NDArray[Any]]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_HELD_OUT = 0.15  # of the training prompts, to stop on
_ROOT = np.float32(np.sqrt(2.0 / np.pi))
_CUBE = np.float32(0.044715)  # of gelu's tanh form (Hendrycks and Gimpel, 2016)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a predictor is trained.

    Parameters
    ----------
    hidden : units, >= 1
    epochs : most passes over the training prompts, >= 0
    rate, decay, batch : of Adam
    patience : epochs without a better choice on held-out prompts before stopping, >= 1
    """

    hidden: int = 256
    epochs: int = 20
    rate: float = 1e-3
    decay: float = 10.0
    batch: int = 128
    patience: int = 5


@dataclass(frozen=True, kw_only=True)
class LossPredictor:
    """A trained predictor.

    Attributes
    ----------
    mean, spread : shape (K,); of each expert's training losses
    centre, scale : of the embeddings: shape (D,) and a number
    layers : W1 (D, H), b1 (H,), W2 (H, K)
    """

    mean: Float64
    spread: Float64
    centre: Float64
    scale: float
    layers: tuple[Float64, Float64, Float64]

    def predict(self, embeddings: npt.NDArray[np.floating[Any]]) -> Float64:
        """Return the predicted losses, (N, D) -> (N, K), in the units of the training losses."""
        x = (embeddings - self.centre) * self.scale
        w1, b1, w2 = self.layers
        return np.asarray(self.mean + _gelu(x @ w1 + b1)[0] @ w2 * self.spread)

    def state(self) -> Arrays:
        """Return everything as arrays."""
        return {
            "mean": self.mean,
            "spread": self.spread,
            "centre": self.centre,
            "scale": np.array(self.scale),
            **{f"layer{n}": layer.astype(np.float32) for n, layer in enumerate(self.layers)},
        }

    @classmethod
    def restore(cls, arrays: Arrays) -> LossPredictor:
        """Rebuild from ``state``."""
        w1, b1, w2 = (arrays[f"layer{n}"].astype(np.float64) for n in range(3))
        return cls(
            mean=arrays["mean"],
            spread=arrays["spread"],
            centre=arrays["centre"],
            scale=float(arrays["scale"]),
            layers=(w1, b1, w2),
        )


def fit_predictor(
    embeddings: Float32,
    losses: npt.NDArray[np.floating[Any]],
    *,
    rng: np.random.Generator,
    training: Training | None = None,
) -> LossPredictor:
    """Train a predictor on embeddings (N, D) and losses (N, K).

    Raises InputError where the shapes disagree, an embedding is not finite, or an expert has no
    finite loss.
    """
    _check(embeddings, losses)
    how = training or Training()
    known_NK = np.isfinite(losses)
    count_K = known_NK.sum(axis=0)
    mean_K = np.where(known_NK, losses, 0.0).sum(axis=0, dtype=np.float64) / count_K
    deviation_NK = np.where(known_NK, losses - mean_K, 0.0)
    spread_K = np.sqrt(np.square(deviation_NK).sum(axis=0) / count_K)
    spread_K = np.where(spread_K > 1e-6 * np.maximum(1.0, np.abs(mean_K)), spread_K, 1.0)
    centre_D = embeddings.mean(axis=0, dtype=np.float64)
    # Unit vectors have tiny coordinates: scaled to about one, so that Adam's steps fit.
    typical = float(np.sqrt(np.square(embeddings - centre_D).mean()))
    scale = 1.0 / typical if typical > 1e-9 else 1.0
    x = ((embeddings - centre_D) * scale).astype(np.float32)
    y = (deviation_NK / spread_K).astype(np.float32)
    known = known_NK.astype(np.float32)
    train, valid = hold_out(embeddings, _HELD_OUT, rng)

    def gradient(p: Parameters, rows: Ints) -> Parameters:
        return _gradient(p, x[rows], y[rows], known[rows])

    def routed(p: Parameters) -> float:
        hidden = _gelu(x[valid] @ p[0] + p[1])[0]
        return routed_loss(mean_K + hidden @ p[2] * spread_K, losses[valid])

    layers = adam(
        _start(x.shape[1], how.hidden, y.shape[1], rng),
        gradient,
        routed,
        train,
        rng,
        rate=how.rate,
        decay=how.decay,
        batch=how.batch,
        epochs=how.epochs,
        patience=how.patience,
    )
    w1, b1, w2 = (layer.astype(np.float64) for layer in layers)
    return LossPredictor(
        mean=mean_K, spread=spread_K, centre=centre_D, scale=scale, layers=(w1, b1, w2)
    )


def routed_loss(
    predicted: npt.NDArray[np.floating[Any]], losses: npt.NDArray[np.floating[Any]]
) -> float:
    """Return the mean loss of the experts of least predicted loss, both (N, K); 0 without rows.

    Only experts whose loss is known (not NaN) can be chosen; a row without any does not count.
    """
    known = np.isfinite(losses)
    rows = np.flatnonzero(known.any(axis=1))
    if len(rows) == 0:
        return 0.0
    choice = np.where(known[rows], predicted[rows], np.inf).argmin(axis=1)
    return float(losses[rows, choice].mean(dtype=np.float64))


def _check(embeddings: Float32, losses: npt.NDArray[np.floating[Any]]) -> None:
    if losses.ndim != 2 or len(embeddings) != len(losses) or len(losses) == 0:
        raise InputError(
            "losses: expected one row of K experts for each embedding and at least one, got "
            f"losses {losses.shape} for embeddings {embeddings.shape}"
        )
    if not np.isfinite(embeddings).all():
        raise InputError("embeddings hold NaN or infinity; drop those prompts")
    never = np.flatnonzero(~np.isfinite(losses).any(axis=0))
    if len(never):
        raise InputError(f"losses: expert {never[0]} has no finite loss; drop the column")


def _start(dim: int, hidden: int, num_experts: int, rng: np.random.Generator) -> Parameters:
    """Return random first and zero last layers."""
    return [
        (rng.standard_normal((dim, hidden)) * np.sqrt(1.0 / dim)).astype(np.float32),
        np.zeros(hidden, dtype=np.float32),
        np.zeros((hidden, num_experts), dtype=np.float32),
    ]


def _gelu(z: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the Gaussian error linear unit of ``z``, tanh form, and the tanh."""
    bend = np.tanh(_ROOT * z * (1 + _CUBE * z * z))
    return 0.5 * z * (1 + bend), bend


def _gradient(p: Parameters, x: Float32, y: Float32, known: Float32) -> Parameters:
    """Gradient of half the mean squared error over the batch; unknown cells have none."""
    z = x @ p[0] + p[1]
    hidden, bend = _gelu(z)
    slope = (hidden @ p[2] - y) * known / np.float32(len(x))
    inner = _ROOT * (1 + 3 * _CUBE * z * z)
    back = (slope @ p[2].T) * (0.5 * (1 + bend) + 0.5 * z * (1 - bend * bend) * inner)
    return [x.T @ back, back.sum(axis=0), hidden.T @ slope]
