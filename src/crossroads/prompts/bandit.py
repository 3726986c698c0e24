"""Linear arms: what one observed reward at a time says of each model.

Shapes: N prompts, K models (arms), P features, of which the last is the constant 1. Every arm is a
ridge regression of its own rewards with the statistics

    A_k = penalty I + sum z z^T,   b_k = sum r z,   theta_k = A_k^-1 b_k

over the prompts it was chosen for (Li et al., WWW 2010, disjoint linear models). The inverse is
kept and updated by rank one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, unknown_name
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]

Index = Callable[[Float64, Float64], Float64]
"""From expected rewards and their widths, both (K,), to what is maximised."""


@dataclass(kw_only=True)
class LinearArms:
    """One ridge regression of rewards a model, on principal axes of the embedding.

    Attributes
    ----------
    centre, axes : (D,) and (D, P - 1), of the projection; axes are scaled so that the squared
        features sum to 1 on average
    inverse, moment : (K, P, P) and (K, P), A^-1 and b of each arm
    """

    centre: Float64
    axes: Float64
    inverse: Float64
    moment: Float64

    @classmethod
    def start(cls, embeddings_ND: Float, num_arms: int, *, components: int, penalty: float) -> Self:
        """Return arms that have seen no reward; axes are those of the prompts, without outcomes."""
        x = embeddings_ND.astype(np.float64)
        centre = x.mean(axis=0)
        variance, axes = np.linalg.eigh(np.cov((x - centre).T, ddof=0).reshape(x.shape[1], -1))
        kept = min(components, x.shape[1])
        total = float(variance[-kept:].sum())
        axes = axes[:, -kept:] / np.sqrt(total if total > 1e-12 else 1.0)
        size = kept + 1
        return cls(
            centre=centre,
            axes=axes,
            inverse=np.tile(np.eye(size) / penalty, (num_arms, 1, 1)),
            moment=np.zeros((num_arms, size)),
        )

    def features(self, embeddings_ND: Float) -> Float64:
        """Return the features z, shape (N, P)."""
        projected = (embeddings_ND.astype(np.float64) - self.centre) @ self.axes
        return np.concatenate([projected, np.ones((len(projected), 1))], axis=1)

    def weights(self) -> Float64:
        """Return theta, shape (K, P)."""
        return np.asarray((self.inverse @ self.moment[:, :, None])[:, :, 0])

    def judge(self, z_P: Float64) -> tuple[Float64, Float64]:
        """Return expected reward z.theta_k and width sqrt(z A_k^-1 z) of each arm, both (K,)."""
        reach_KP = self.inverse @ z_P
        width_K = np.sqrt(np.maximum(reach_KP @ z_P, 0.0))
        return (reach_KP * self.moment).sum(axis=1), width_K

    def observe(self, z_P: Float64, arm: int, reward: float) -> None:
        """Take one reward in, by the Sherman-Morrison formula."""
        reach_P = self.inverse[arm] @ z_P
        self.inverse[arm] -= np.outer(reach_P, reach_P) / (1.0 + z_P @ reach_P)
        self.moment[arm] += reward * z_P

    def replay(self, data: TrainingSet, index: Index, rng: np.random.Generator) -> Float64:
        """Meet the prompts in random order, choose by ``index``, see the chosen score alone.

        A model that was not run on a prompt can not be chosen there. Returns the rewards in the
        order met, shape (N,), NaN for a prompt that no model was run on.
        """
        z_NP, known_NK = self.features(data.embeddings), np.isfinite(data.scores)
        reward_N = np.full(len(data), np.nan)
        for step, row in enumerate(rng.permutation(len(data))):
            if not known_NK[row].any():
                continue
            value_K = index(*self.judge(z_NP[row]))
            arm = int(np.where(known_NK[row], value_K, -np.inf).argmax())
            reward_N[step] = data.scores[row, arm]
            self.observe(z_NP[row], arm, float(reward_N[step]))
        return reward_N

    def feed(self, models: tuple[str, ...], embedding_D: Float, model: str, reward: float) -> None:
        """Check one online observation and take it in. Raises InputError, UsageError."""
        if model not in models:
            raise unknown_name("model", model, models)
        self.observe(self.one(embedding_D), models.index(model), checked_reward(reward))

    def one(self, embedding_D: Float) -> Float64:
        """Return the features of one prompt, shape (P,). Raises InputError."""
        x = np.asarray(embedding_D, dtype=np.float64)
        if x.shape != self.centre.shape or not np.isfinite(x).all():
            raise InputError(
                f"expected an embedding of {len(self.centre)} finite numbers, got shape {x.shape}"
            )
        return np.asarray(self.features(x[None])[0])

    def state(self) -> Arrays:
        # Copies: what was handed out does not follow later observations.
        return {
            "centre": self.centre.copy(),
            "axes": self.axes.copy(),
            "inverse": self.inverse.copy(),
            "moment": self.moment.copy(),
        }

    @classmethod
    def restore(cls, arrays: Arrays) -> Self:
        return cls(
            centre=arrays["centre"],
            axes=arrays["axes"],
            inverse=arrays["inverse"].copy(),
            moment=arrays["moment"].copy(),
        )


def checked_reward(reward: float) -> float:
    """Return a reward in [0, 1]. Raises InputError."""
    if not 0.0 <= reward <= 1.0:
        raise InputError(f"expected a reward in [0, 1], got {reward!r}")
    return float(reward)


class LinearBandit(PromptRouter):
    """A router that learns from the score of the model it chose; estimates are theta_k . z.

    A bandit says by ``index`` what it maximises when it explores. Its settings ``components`` and
    ``penalty`` are those of ``LinearArms``.
    """

    method = "reinforcement learning"
    needs = "bandit feedback"
    adding_a_model = "few examples"

    components: int
    penalty: float

    @abstractmethod
    def index(
        self, expected_K: Float64, width_K: Float64, rng: np.random.Generator | None
    ) -> Float64:
        """Return what is maximised, from expected rewards and their widths, all shape (K,)."""

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._arms = LinearArms.start(
            data.embeddings, len(self.models), components=self.components, penalty=self.penalty
        )
        self._arms.replay(data, lambda e, w: self.index(e, w, rng), rng)
        self._weights = self._arms.weights()

    def choose(self, embedding_D: Float, rng: np.random.Generator | None = None) -> str:
        """Return the model to ask online, exploring; then ``update`` with what came of it.

        A bandit that draws needs ``rng``. Raises InputError for an embedding of another length.
        """
        expected_K, width_K = self._arms.judge(self._arms.one(embedding_D))
        return self.models[int(self.index(expected_K, width_K, rng).argmax())]

    def update(self, embedding_D: Float, model: str, reward: float) -> None:
        """Learn from the reward in [0, 1] of one answer; later estimates include it.

        Raises UsageError for a model the router does not know, InputError for an embedding of
        another length or a reward out of range.
        """
        self._arms.feed(self.models, embedding_D, model, reward)
        self._weights = self._arms.weights()

    def _predict(self, queries: Queries) -> Float64:
        return np.asarray(self._arms.features(queries.embeddings) @ self._weights.T)

    def _state(self) -> Arrays:
        return self._arms.state()

    def _restore(self, arrays: Arrays) -> None:
        self._arms = LinearArms.restore(arrays)
        self._weights = self._arms.weights()
