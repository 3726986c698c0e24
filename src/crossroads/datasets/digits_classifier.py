"""A small classifier of handwritten digits, fit once with a fixed seed, to judge generated ones.

Its last hidden layer is the space in which the Frechet distance of generated images is taken, and
its predictions say whether an image shows the label it was asked for. An instrument, not a
result: every arm is judged by the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, MissingExtraError
from crossroads.datasets import digits

HIDDEN = (64, 32)
SEED = 0

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class DigitsClassifier:
    """Three-layer ReLU network on 64 pixels.

    Attributes
    ----------
    weights, biases : of the layers; a layer maps rows x to ``x @ weight + bias``
    """

    weights: tuple[Float64, ...]
    biases: tuple[Float64, ...]

    def features(self, pixels: npt.NDArray[np.floating]) -> Float64:
        """Return the last hidden layer, (N, 32), of images with pixels in [0, 1].

        Raises InputError for images that are not (N, 1, 8, 8).
        """
        if pixels.ndim != 4 or pixels.shape[1:] != (1, 8, 8):
            raise InputError(f"pixels: expected shape (N, 1, 8, 8), got {pixels.shape}")
        rows = pixels.reshape(len(pixels), -1).astype(np.float64)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            rows = np.maximum(rows @ weight + bias, 0)
        return rows

    def predict(self, pixels: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """Return the label of every image, (N,)."""
        scores = self.features(pixels) @ self.weights[-1] + self.biases[-1]
        best: npt.NDArray[np.int64] = scores.argmax(axis=1)
        return best

    def accuracy(self, pixels: npt.NDArray[np.floating], label: npt.NDArray[np.int64]) -> float:
        """Return the share of images that show their label."""
        return float((self.predict(pixels) == label).mean())


@cache
def digits_classifier() -> DigitsClassifier:
    """Return the classifier, fit on the training part in about a second and then kept.

    Raises MissingExtraError without scikit-learn.
    """
    try:
        from sklearn.neural_network import MLPClassifier
    except ImportError:
        raise MissingExtraError("scikit-learn", extra="neural") from None
    train = digits.load().train
    network = MLPClassifier(HIDDEN, learning_rate_init=3e-3, max_iter=200, random_state=SEED)
    network.fit(train.pixels.reshape(len(train.pixels), -1).astype(np.float64), train.label)
    return DigitsClassifier(weights=tuple(network.coefs_), biases=tuple(network.intercepts_))
