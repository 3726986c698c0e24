"""Item response theory: abilities of the models, discrimination and difficulty of the prompt.

MIRT-Router of IRT-Router (2025, arXiv 2506.01048), a two-parameter logistic model of R dimensions:

    P(model k is right on x) = sigmoid(a(x) . theta_k - b(x)),  a(x) = softplus(A x + a0)

Discriminations a are positive, so that no ability ever harms; difficulty b(x) = B x + b0 is common
to all models. Differences: one linear map of a frozen embedding; abilities are free vectors,
learned from outcomes alone, where the paper maps a text that describes the model. Abilities start
at the log-odds of the mean scores, so that the untrained router is the best single model; outputs
are scaled on held-out prompts.
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

_SPREAD = 0.3  # of starting abilities around a model's own: lets the dimensions part


@dataclass(kw_only=True)
class MultidimensionalResponse(ItemResponse):
    """Two-parameter logistic model on the embedding.

    Parameters
    ----------
    dims : of ability, >= 1
    epochs : most passes over the training prompts, >= 0
    rate, decay : of Adam, > 0 and >= 0
    """

    name = "mirt"
    summary = "item response theory: model abilities, prompt difficulty"
    array_names = ("discriminate", "discrimination", "ability", "difficulty", "threshold")

    dims: int = 16
    epochs: int = 30
    rate: float = 3e-3
    decay: float = 0.3

    def __post_init__(self) -> None:
        if (
            self.dims < 1
            or self.epochs < 0
            or not 0 < self.rate < np.inf
            or not 0 <= self.decay < np.inf
        ):
            raise UsageError(
                "router 'mirt': expected dims >= 1, epochs >= 0, rate > 0 and decay >= 0, got "
                f"{self.settings!r}"
            )

    def start(self, data: TrainingSet, rng: np.random.Generator) -> list[Float]:
        spread = rng.normal(scale=_SPREAD, size=(len(self.models), self.dims))
        ability = log_odds(data.mean_scores())[:, None] + spread
        ability -= spread.mean(axis=1, keepdims=True)
        dim = data.embeddings.shape[1]
        return [
            np.zeros((dim, self.dims)),
            np.full(self.dims, np.log(np.expm1(1.0 / self.dims))),  # discriminations of 1 in all
            ability,
            np.zeros(dim),
            np.zeros(1),
        ]

    @staticmethod
    def logits(p: list[Any], x_ND: Float) -> Float:
        return response(p, x_ND)

    @staticmethod
    def gradient(p: Parameters, x_ND: Float, y_NK: Float, known_NK: Float) -> Parameters:
        return response_gradient(p, x_ND, y_NK, known_NK)


def response(p: list[Any], x_ND: Float) -> Float:
    """Return the logits a(x) . theta_k - b(x), shape (N, K)."""
    discrimination_NR = np.logaddexp(0.0, x_ND @ p[0] + p[1])
    return np.asarray(discrimination_NR @ p[2].T - (x_ND @ p[3] + p[4])[:, None])


def response_gradient(p: list[Any], x_ND: Float, y_NK: Float, known_NK: Float) -> list[Any]:
    """Return the gradient of the mean log loss of a batch; unknown cells have none."""
    before_NR = x_ND @ p[0] + p[1]
    discrimination_NR = np.logaddexp(0.0, before_NR)
    logit = discrimination_NR @ p[2].T - (x_ND @ p[3] + p[4])[:, None]
    slope_NK = ((sigmoid(logit) - y_NK) * known_NK / len(x_ND)).astype(p[0].dtype)
    back_NR = (slope_NK @ p[2]) * sigmoid(before_NR).astype(p[0].dtype)
    easier_N = -slope_NK.sum(axis=1)
    return [
        x_ND.T @ back_NR,
        back_NR.sum(axis=0),
        slope_NK.T @ discrimination_NR,
        x_ND.T @ easier_N,
        easier_N.sum(keepdims=True),
    ]
