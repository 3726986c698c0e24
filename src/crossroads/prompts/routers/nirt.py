"""Item response theory with a learned interaction of ability and difficulty.

NIRT-Router of IRT-Router (2025, arXiv 2506.01048), after neural cognitive diagnosis: on each of R
latent skills, a model's ability is held against the prompt's difficulty where the prompt needs the
skill, and a network that never decreases in any ability turns the margins into a chance of success:

    h_k = relevance(x) * (theta_k - difficulty(x))
    P(model k is right on x) = sigmoid(|w| . tanh(|W| h_k + c) + bias_k)

with relevance the sigmoid of a linear map of x, and difficulty linear. Differences: a frozen
embedding and free abilities, as in ``mirt``; the published code sends abilities and difficulties
through sigmoids, takes the relevance from given knowledge points through a softmax and scales all
margins by one discrimination, which the learned relevance does here; bias_k holds the mean score,
so that the network has only what the prompt changes to learn. Outputs are scaled on held-out
prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.calibration import log_odds
from crossroads.prompts.gradient import Parameters
from crossroads.prompts.item_response import ItemResponse
from crossroads.prompts.regression import sigmoid
from crossroads.prompts.router import TrainingSet

Float = npt.NDArray[np.floating[Any]]


@dataclass(kw_only=True)
class NeuralResponse(ItemResponse):
    """Monotone network over skill margins.

    Parameters
    ----------
    skills : latent dimensions, >= 1
    hidden : units of the interaction network, >= 1
    epochs : most passes over the training prompts, >= 0
    rate, decay : of Adam, > 0 and >= 0
    """

    name = "nirt"
    summary = "item response theory with a monotone interaction network"
    array_names = (
        *("relevance", "difficulty", "ability"),
        *("hidden", "offset", "output", "bias"),
    )

    skills: int = 8
    hidden: int = 8
    epochs: int = 12
    rate: float = 5e-3
    decay: float = 0.3

    def __post_init__(self) -> None:
        if (
            min(self.skills, self.hidden) < 1
            or self.epochs < 0
            or not 0 < self.rate < np.inf
            or not 0 <= self.decay < np.inf
        ):
            raise UsageError(
                "router 'nirt': expected skills >= 1, hidden >= 1, epochs >= 0, rate > 0 and "
                f"decay >= 0, got {self.settings!r}"
            )

    def start(self, data: TrainingSet, rng: np.random.Generator) -> list[Float]:
        dim, skills, hidden = data.embeddings.shape[1], self.skills, self.hidden
        return [
            rng.normal(size=(dim, skills)),
            rng.normal(size=(dim, skills)),
            rng.normal(scale=0.3, size=(len(self.models), skills)),
            rng.normal(scale=1.0 / np.sqrt(skills), size=(skills, hidden)),
            rng.normal(scale=0.3, size=hidden),
            rng.normal(scale=1.0 / np.sqrt(hidden), size=hidden),
            log_odds(data.mean_scores()),
        ]

    @staticmethod
    def logits(p: list[Any], x_ND: Float) -> Float:
        return interaction(p, x_ND)

    @staticmethod
    def gradient(p: Parameters, x_ND: Float, y_NK: Float, known_NK: Float) -> Parameters:
        return interaction_gradient(p, x_ND, y_NK, known_NK)


def interaction(p: list[Any], x_ND: Float) -> Float:
    """Return the logits of the module's equation, shape (N, K)."""
    return _forward(p, x_ND)[-1]


def _forward(p: list[Any], x_ND: Float) -> tuple[Float, Float, Float, Float]:
    """Return relevance (N, R), margins (N, K, R), hidden units (N, K, H) and logits (N, K)."""
    relevance_NR = sigmoid(x_ND @ p[0]).astype(x_ND.dtype)
    margin_NKR = p[2][None, :, :] - (x_ND @ p[1])[:, None, :]
    unit_NKH = np.tanh((relevance_NR[:, None, :] * margin_NKR) @ np.abs(p[3]) + p[4])
    return relevance_NR, margin_NKR, unit_NKH, unit_NKH @ np.abs(p[5]) + p[6]


def interaction_gradient(p: list[Any], x_ND: Float, y_NK: Float, known_NK: Float) -> list[Any]:
    """Return the gradient of the mean log loss of a batch; unknown cells have none."""
    relevance_NR, margin_NKR, unit_NKH, logit_NK = _forward(p, x_ND)
    slope_NK = ((sigmoid(logit_NK) - y_NK) * known_NK / len(x_ND)).astype(p[0].dtype)
    output = np.einsum("nk,nkh->h", slope_NK, unit_NKH) * np.sign(p[5])
    back_NKH = slope_NK[:, :, None] * np.abs(p[5]) * (1.0 - np.square(unit_NKH))
    pressed_NKR = relevance_NR[:, None, :] * margin_NKR
    num_skills, num_hidden = p[3].shape
    hidden = pressed_NKR.reshape(-1, num_skills).T @ back_NKH.reshape(-1, num_hidden)
    pressure_NKR = back_NKH @ np.abs(p[3]).T
    moved_NKR = pressure_NKR * relevance_NR[:, None, :]
    wanted_NR = (pressure_NKR * margin_NKR).sum(axis=1) * relevance_NR * (1.0 - relevance_NR)
    return [
        x_ND.T @ wanted_NR,
        -x_ND.T @ moved_NKR.sum(axis=1),
        moved_NKR.sum(axis=0),
        hidden * np.sign(p[3]),
        back_NKH.sum(axis=(0, 1)),
        output,
        slope_NK.sum(axis=0),
    ]
