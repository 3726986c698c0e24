"""Two contrasts train one space: prompts near the models that answer them, and near their like.

RouterDC (2024, arXiv 2409.19886). A prompt x has the vector u = x W, model k the vector v_k; the
router asks the model of the highest cosine. With z_k = cos(u, v_k) / temperature, G(x) the models
that answered well and B(x) those that did not, of a prompt x with a companion x+ of its own cluster
and the rest of the batch outside the cluster as x-:

    loss = mean_x [ sum_(t in G) -log e^z_t / (e^z_t + sum_(b in B) e^z_b) ]
         + weight mean_x [ -log e^c+ / (e^c+ + sum_(x-) e^c-) ],   c = cos(u, u') / temperature

Differences: a linear map of a frozen embedding in place of the fine-tuned encoder; clusters are
k-means of the same embedding. Good and bad are above and below the mean score of the prompt over
the models, weighed by how far, which for right or wrong answers is all right ones against all wrong
ones (published: the top 3 and bottom 3 with bad ones below 0.5). Cosines are turned into
probabilities on held-out prompts, each model's mean score kept, so that a pool with one best model
and nothing to learn stays with that model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.calibration import ScaledLogits, train_scaled
from crossroads.prompts.clustering import kmeans, squared_distances
from crossroads.prompts.gradient import Parameters
from crossroads.prompts.regression import sigmoid
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet
from crossroads.prompts.stacking import contrasts

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_TINY = np.float32(1e-6)


@dataclass(kw_only=True)
class DualContrastive(PromptRouter):
    """P_k = sigmoid of a scaled cosine between the prompt's vector and the model's.

    Parameters
    ----------
    dim : length of the vectors, >= 1
    temperature : of both contrasts, > 0
    weight : of the contrast between prompts, >= 0
    clusters : of prompts, for companions, >= 1
    epochs : most passes over the training prompts, >= 0
    rate : of Adam, > 0
    """

    name = "routerdc"
    summary = "cosine to model vectors learned by two contrasts"

    dim: int = 32
    temperature: float = 0.3
    weight: float = 1.0
    clusters: int = 8
    epochs: int = 15
    rate: float = 3e-3

    def __post_init__(self) -> None:
        if (
            min(self.dim, self.clusters) < 1
            or self.epochs < 0
            or not 1e-3 <= self.temperature < np.inf
            or not 0 <= self.weight < np.inf
            or not 0 < self.rate < np.inf
        ):
            raise UsageError(
                "router 'routerdc': expected dim >= 1, clusters >= 1, epochs >= 0, temperature >= "
                f"0.001, weight >= 0 and rate > 0, got {self.settings!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        x = data.embeddings.astype(np.float32)
        good_NK = contrasts(data.scores).astype(np.float32)
        centres = kmeans(x, self.clusters, rng)
        cluster_N = squared_distances(x, centres).argmin(axis=1)
        shapes = ((x.shape[1], self.dim), (len(self.models), self.dim))

        def start() -> Parameters:
            spread = 1.0 / np.sqrt(x.shape[1])
            return [rng.normal(scale=spread, size=s).astype(np.float32) for s in shapes]

        def gradient(p: Parameters, rows: Ints) -> Parameters:
            companion = companions(cluster_N[rows], rng)
            return self._slopes(p, x[rows], good_NK[rows], cluster_N[rows], companion)[1]

        (self._projection, self._vectors), self._scale = train_scaled(
            data,
            start,
            lambda p, rows: self._cosines(x[rows], p),
            gradient,
            rng,
            rate=self.rate,
            decay=0.0,
            epochs=self.epochs,
        )

    def _cosines(self, x: npt.NDArray[np.floating[Any]], p: Parameters) -> Float64:
        unit_x = _unit(x.astype(np.float64) @ p[0].astype(np.float64))[0]
        return np.asarray(unit_x @ _unit(p[1].astype(np.float64))[0].T)

    def _slopes(
        self, p: Parameters, x: Float32, good_NK: Float32, cluster_N: Ints, companion_N: Ints
    ) -> tuple[float, Parameters]:
        """Return the loss of a batch and its gradient."""
        u, length_u = _unit(x @ p[0])
        v, length_v = _unit(p[1])
        heat = np.float32(self.temperature)
        model_loss, slope_NK = model_contrast(u @ v.T / heat, good_NK)
        prompt_loss, slope_NN = prompt_contrast(u @ u.T / heat, cluster_N, companion_N)
        slope_NN = slope_NN * np.float32(self.weight)
        slope_u = (slope_NK @ v + (slope_NN + slope_NN.T) @ u) / heat
        slope_v = slope_NK.T @ u / heat
        loss = model_loss + self.weight * prompt_loss
        return loss, [x.T @ _before_unit(u, length_u, slope_u), _before_unit(v, length_v, slope_v)]

    def _predict(self, queries: Queries) -> Float64:
        return self._scale(self._cosines(queries.embeddings, [self._projection, self._vectors]))

    def _state(self) -> Arrays:
        return {
            "projection": self._projection,
            "vectors": self._vectors,
            **self._scale.state(),
        }

    def _restore(self, arrays: Arrays) -> None:
        self._projection, self._vectors = arrays["projection"], arrays["vectors"]
        self._scale = ScaledLogits.restore(arrays)


def companions(cluster_N: Ints, rng: np.random.Generator) -> Ints:
    """Return for each row another of its cluster, shape (N,); itself where it is alone."""
    order = np.lexsort((rng.random(len(cluster_N)), cluster_N))
    first = np.searchsorted(cluster_N[order], cluster_N[order], side="left")
    size = np.searchsorted(cluster_N[order], cluster_N[order], side="right") - first
    place = np.arange(len(order))
    found = np.empty_like(order)
    found[order] = order[first + (place - first + 1) % size]
    return found


def model_contrast(logit_NK: Float32, good_NK: Float32) -> tuple[float, Float32]:
    """Return mean loss and slopes (N, K); ``good_NK`` > 0 marks good models, < 0 bad ones."""
    gain = np.maximum(good_NK, 0.0)
    bad = np.where(good_NK < 0, logit_NK, -np.inf)
    has_bad = np.asarray(np.isfinite(bad).any(axis=1, keepdims=True))
    gain = gain * has_bad
    total, share_NK = _log_total(bad, has_bad)
    excess = np.where(has_bad, total - logit_NK, 0.0)
    pull = gain * sigmoid(excess) / np.float32(max(len(gain), 1))
    loss = float((gain * np.logaddexp(0.0, excess)).sum() / max(len(gain), 1))
    return loss, np.asarray(pull.sum(axis=1, keepdims=True) * share_NK - pull, dtype=np.float32)


def prompt_contrast(logit_NN: Float32, cluster_N: Ints, companion_N: Ints) -> tuple[float, Float32]:
    """Return mean loss and slopes (N, N); prompts without companion or outsider have none."""
    rows = np.arange(len(logit_NN))
    outside = np.where(cluster_N[:, None] != cluster_N[None, :], logit_NN, -np.inf)
    counts = np.isfinite(outside).any(axis=1, keepdims=True)
    counts = np.asarray(counts & (companion_N != rows)[:, None])
    total, share_NN = _log_total(outside, counts)
    excess = np.where(counts[:, 0], total[:, 0] - logit_NN[rows, companion_N], 0.0)
    pull = counts[:, 0] * sigmoid(excess) / max(len(rows), 1)
    slope = pull[:, None] * share_NN
    slope[rows, companion_N] -= pull
    loss = float((counts[:, 0] * np.logaddexp(0.0, excess)).sum() / max(len(rows), 1))
    return loss, np.asarray(slope, dtype=np.float32)


def _log_total(logit_NM: Float32, counts_N1: npt.NDArray[np.bool_]) -> tuple[Float32, Float32]:
    """Return log-sum-exp (N, 1) and softmax (N, M) of rows that count; 0 elsewhere."""
    kept = np.where(counts_N1, logit_NM, 0.0)
    highest = kept.max(axis=1, keepdims=True, initial=-np.inf)
    exponent = np.exp(kept - highest)
    total = exponent.sum(axis=1, keepdims=True)
    return np.log(total) + highest, np.where(counts_N1, exponent / total, 0.0)


def _unit(rows: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return unit rows and lengths (n, 1), no less than 0.000001."""
    length = np.maximum(np.sqrt(np.square(rows).sum(axis=1, keepdims=True)), _TINY)
    return rows / length, length


def _before_unit(unit: Float32, length: Float32, slope: Float32) -> Float32:
    """Return the slope of the rows that were made ``unit``, from that of the unit rows."""
    along = (unit * slope).sum(axis=1, keepdims=True)
    return np.asarray((slope - along * unit) / length, dtype=np.float32)
