"""Training an adaptor whose loss already knows similarity and distance.

Adam over small batches; q and d are constants of the loss, taken again for every point after each
epoch. The first epoch is plain cross-entropy (q = e - 2, d = 1). The epoch with the least
class-balanced loss on the calibration half is kept.

Departures from the reference: a step length and epochs for small embeddings (1e-3 and 20 instead
of 1e-5 and 200), and 256 exemplar dimensions instead of 1,000.

Axes: N rows, D input width, M exemplar width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from crossroads.core.adam import Adam
from crossroads.core.calibration.activation import (
    SOFTMAX_SIMILARITY,
    Adaptor,
    Float32,
    Float64,
    Ints,
    class_balanced_mean,
    sdm,
    sdm_loss,
)
from crossroads.core.calibration.neighbours import (
    DistanceQuantiles,
    Neighbourhood,
    Support,
    neighbourhood,
)
from crossroads.core.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class SdmSettings:
    """How adaptors are trained.

    Attributes
    ----------
    width : M, exemplar dimensions
    epochs : passes over the training half
    rate : Adam's step length
    batch : rows a step
    restarts : J, each with its own split into halves and its own start
    depth : cap of the similarity
    """

    width: int = 256
    epochs: int = 20
    rate: float = 1e-3
    batch: int = 50
    restarts: int = 3
    depth: int = 1000

    def __post_init__(self) -> None:
        for name in ("width", "epochs", "batch", "restarts", "depth"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.rate > 0:
            raise InputError(f"rate: expected a step length above 0, got {self.rate}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The kept epoch of one restart.

    Attributes
    ----------
    adaptor, support : of the training half
    quantiles : of the calibration half's nearest distances
    logit, similarity, distance : of the calibration half, (N, C), (N,) and (N,)
    loss : class-balanced, on the calibration half
    """

    adaptor: Adaptor
    support: Support
    quantiles: DistanceQuantiles
    logit: Float32
    similarity: Ints
    distance: Float64
    loss: float


def train(
    x_ND: Float32,
    label_N: Ints,
    held_ND: Float32,
    held_label_N: Ints,
    *,
    num_classes: int,
    settings: SdmSettings,
    rng: np.random.Generator,
    after_epoch: Callable[[], None] = lambda: None,
) -> Trained:
    """Train one adaptor on the training half and return its best epoch on the other half."""
    adaptor = Adaptor.initial(x_ND, num_classes, settings.width, rng)
    rows = adaptor.standardise(x_ND)
    similarity = np.full(len(rows), SOFTMAX_SIMILARITY)
    distance = np.ones(len(rows))
    optimiser = Adam(
        [adaptor.g_weight, adaptor.g_bias, adaptor.w_weight, adaptor.w_bias], settings.rate
    )
    best: Trained | None = None
    for _ in range(settings.epochs):
        order = rng.permutation(len(rows))
        for start in range(0, len(order), settings.batch):
            pick = order[start : start + settings.batch]
            slopes = _gradient(
                optimiser.parameters, rows[pick], label_N[pick], similarity[pick], distance[pick]
            )
            optimiser.step(slopes)
        g_weight, g_bias, w_weight, w_bias = (p.copy() for p in optimiser.parameters)
        adaptor = replace(
            adaptor, g_weight=g_weight, g_bias=g_bias, w_weight=w_weight, w_bias=w_bias
        )
        found, support = _look_around(adaptor, x_ND, label_N, settings.depth)
        similarity = found.similarity.astype(np.float64)
        distance = DistanceQuantiles.of(found, label_N, num_classes).distance(
            found.nearest_distance
        )
        now = _evaluate(adaptor, support, held_ND, held_label_N, settings.depth)
        if best is None or now.loss < best.loss:
            best = now
        after_epoch()
    assert best is not None  # there is at least one epoch
    return best


def _look_around(
    adaptor: Adaptor, x_ND: Float32, label_N: Ints, depth: int
) -> tuple[Neighbourhood, Support]:
    """Return the training points as support, and how each sees the others."""
    exemplar = adaptor.exemplars(x_ND)
    prediction = adaptor.logits(exemplar).argmax(axis=1)
    row = np.arange(len(label_N))
    support = Support(exemplar=exemplar, prediction=prediction, label=label_N, row=row)
    return neighbourhood(exemplar, prediction, support, depth=depth, exclude_self=True), support


def _evaluate(
    adaptor: Adaptor, support: Support, held_ND: Float32, label_N: Ints, depth: int
) -> Trained:
    exemplar = adaptor.exemplars(held_ND)
    logit = adaptor.logits(exemplar)
    found = neighbourhood(exemplar, logit.argmax(axis=1), support, depth=depth)
    quantiles = DistanceQuantiles.of(found, label_N, adaptor.num_classes)
    distance = quantiles.distance(found.nearest_distance)
    loss = sdm_loss(logit, label_N, found.similarity, distance)
    return Trained(
        adaptor=adaptor,
        support=support,
        quantiles=quantiles,
        logit=logit,
        similarity=found.similarity,
        distance=distance,
        loss=class_balanced_mean(loss, label_N),
    )


def _gradient(
    parameters: list[Float32], x_ND: Float32, label_N: Ints, similarity_N: Float64, d_N: Float64
) -> list[Float32]:
    """Return the slopes of the mean loss; the base of the logarithm cancels, d remains."""
    g_weight, g_bias, w_weight, w_bias = parameters
    exemplar_NM = x_ND @ g_weight.T + g_bias
    slope_NC = sdm(exemplar_NM @ w_weight.T + w_bias, similarity_N, d_N)
    slope_NC[np.arange(len(label_N)), label_N] -= 1
    z_NC = (slope_NC * (d_N / len(label_N))[:, None]).astype(np.float32)
    h_NM = z_NC @ w_weight
    return [h_NM.T @ x_ND, h_NM.sum(axis=0), z_NC.T @ exemplar_NM, z_NC.sum(axis=0)]
