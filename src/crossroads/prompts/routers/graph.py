"""A graph of tasks, prompts and models; routing predicts the edge from a prompt to each model.

GraphRouter (2024, arXiv 2410.03834). Nodes are tasks (here k-means clusters of prompts), training
prompts x_i and models; the edge from prompt to model carries the outcome s_ik. One round of
messages, then the edge of an unseen prompt is predicted from both of its ends:

    model   h_k = e_k + m_k V,            m_k = mean over prompts run on k of (s_ik - mean_k) x_i
    prompt  h_x = relu(x U + t_x W + c),  t_x = centre of the prompt's task
    P(model k is right on x) = sigmoid(base_k + h_k . h_x)

In training the edges of a batch are hidden from the messages, so that no edge predicts itself.
Differences: embeddings are frozen and messages pass once, through linear maps, instead of twice
through attention; e_k is free where the paper embeds a text that describes the model; cost edges
are left to the decision rule. Messages are scaled to unit mean square. The router starts at the
mean scores, and its outputs are scaled on held-out prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.calibration import ScaledLogits, log_odds, train_scaled
from crossroads.prompts.clustering import kmeans, squared_distances
from crossroads.prompts.gradient import Parameters
from crossroads.prompts.regression import sigmoid
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(kw_only=True)
class EdgePrediction(PromptRouter):
    """Edges predicted after one round of messages.

    Parameters
    ----------
    dim : length of the nodes' hidden vectors, >= 1
    tasks : clusters of prompts, >= 1
    epochs : most passes over the training prompts, >= 0
    rate, decay : of Adam, > 0 and >= 0
    """

    name = "graph"
    summary = "edges between prompts and models in a graph, after messages"
    adding_a_model = "few examples"

    dim: int = 32
    tasks: int = 16
    epochs: int = 12
    rate: float = 3e-3
    decay: float = 1.0

    def __post_init__(self) -> None:
        if (
            min(self.dim, self.tasks) < 1
            or self.epochs < 0
            or not 0 < self.rate < np.inf
            or not 0 <= self.decay < np.inf
        ):
            raise UsageError(
                "router 'graph': expected dim >= 1, tasks >= 1, epochs >= 0, rate > 0 and "
                f"decay >= 0, got {self.settings!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        x_ND = data.embeddings.astype(np.float32)
        self._tasks = kmeans(x_ND, self.tasks, rng)
        known_NK = np.isfinite(data.scores)
        y_NK = np.where(known_NK, data.scores, 0.0).astype(np.float32)
        edge_NK = np.where(known_NK, data.scores - data.mean_scores(), 0.0).astype(np.float32)
        known_NK = known_NK.astype(np.float32)
        base_K = log_odds(data.mean_scores()).astype(np.float32)
        both_NC = self._with_task(x_ND).astype(np.float32)
        whole_KD, count_K = edge_NK.T @ x_ND, known_NK.sum(axis=0)
        typical = float(np.sqrt(np.square(whole_KD / count_K[:, None]).mean()))
        scale = np.float32(1.0 / typical if typical > 1e-9 else 1.0)

        def messages(hidden: Ints) -> Float:
            total_KD = whole_KD - edge_NK[hidden].T @ x_ND[hidden]
            left_K = np.maximum(count_K - known_NK[hidden].sum(axis=0), 1.0)
            return np.asarray(total_KD * scale / left_K[:, None])

        def start() -> Parameters:
            shapes = [
                np.zeros((len(self.models), self.dim)),
                np.zeros((x_ND.shape[1], self.dim)),
                rng.normal(size=(both_NC.shape[1], self.dim)),
                np.zeros(self.dim),
            ]
            return [part.astype(np.float32) for part in shapes]

        def gradient(p: Parameters, rows: Ints) -> Parameters:
            graph = (messages(rows), both_NC[rows], base_K)
            return edge_gradient(p, *graph, y_NK=y_NK[rows], known_NK=known_NK[rows])

        found, self._scale = train_scaled(
            data,
            start,
            lambda p, rows: edges(p, messages(rows), both_NC[rows], base_K),
            gradient,
            rng,
            rate=self.rate,
            decay=self.decay,
            epochs=self.epochs,
        )
        own, mix, self._mix, self._offset = (part.astype(np.float64) for part in found)
        self._nodes = own + messages(np.zeros(0, dtype=np.intp)) @ mix
        self._base = base_K.astype(np.float64)

    def _with_task(self, rows_ND: Float) -> Float64:
        """Return prompts beside the centres of their tasks, shape (N, 2 D)."""
        x = rows_ND.astype(np.float64)
        task_N = squared_distances(x, self._tasks).argmin(axis=1)
        return np.concatenate([x, self._tasks[task_N]], axis=1)

    def _predict(self, queries: Queries) -> Float64:
        both_NC = self._with_task(queries.embeddings)
        hidden_NR = np.maximum(both_NC @ self._mix + self._offset, 0.0)
        return self._scale(hidden_NR @ self._nodes.T + self._base)

    def _state(self) -> Arrays:
        return {
            "tasks": self._tasks,
            "nodes": self._nodes,
            "mix": self._mix,
            "offset": self._offset,
            "base": self._base,
            **self._scale.state(),
        }

    def _restore(self, arrays: Arrays) -> None:
        self._tasks, self._nodes = arrays["tasks"], arrays["nodes"]
        self._mix, self._offset = arrays["mix"], arrays["offset"]
        self._base, self._scale = arrays["base"], ScaledLogits.restore(arrays)


def edges(p: Parameters, message_KD: Float, both_NC: Float, base_K: Float) -> Float:
    """Return the logits of the module's equation, shape (N, K).

    ``both_NC`` holds prompts beside their tasks, ``p`` is (e, V, U above W, c).
    """
    hidden_NR = np.maximum(both_NC @ p[2] + p[3], 0.0)
    return np.asarray(hidden_NR @ (p[0] + message_KD @ p[1]).T + base_K)


def edge_gradient(
    p: Parameters,
    message_KD: Float,
    both_NC: Float,
    base_K: Float,
    *,
    y_NK: Float,
    known_NK: Float,
) -> list[Any]:
    """Return the gradient of the mean log loss of a batch; unknown cells have none."""
    hidden_NR = np.maximum(both_NC @ p[2] + p[3], 0.0)
    node_KR = p[0] + message_KD @ p[1]
    error_NK = (sigmoid(hidden_NR @ node_KR.T + base_K) - y_NK) * known_NK
    slope_NK = (error_NK / len(both_NC)).astype(p[0].dtype)
    slope_KR = slope_NK.T @ hidden_NR
    back_NR = (slope_NK @ node_KR) * (hidden_NR > 0)
    return [slope_KR, message_KD.T @ slope_KR, both_NC.T @ back_NR, back_NR.sum(axis=0)]
