"""Bradley-Terry strengths fitted anew for every prompt, similar training prompts weighing more.

RouteLLM's similarity-weighted ranking (2024, arXiv 2406.18665): battle i of the training data
weighs gamma^(1 + S_i / S_max) for a query, S the cosine similarity and S_max its highest value.

    P(a beats b | query) = sigmoid(theta_a - theta_b), theta maximising
    sum_i w_i sum_(a,b run on i) r_iab log sigmoid(theta_a - theta_b)
    with r_iab = (1 + s_ia - s_ib) / 2

Differences: K models and recorded scores in place of two tiers and votes; a tie, like a graded
difference, is shared between both sides, as Chatbot Arena does. ``prior`` drawn battles a pair keep
the strengths finite. Strengths are told as quality: the share of battles that a model is expected
to win against the others, on the scale of scores. Where every model was run on every prompt, the
likelihood equations say that expected and weighted observed shares agree, so that the estimate is
the similarity-weighted mean score and nothing need be iterated; Newton's method does it elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError
from crossroads.prompts.regression import sigmoid
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_NEWTON_STEPS = 8
_LONGEST_STEP = 2.0  # of a strength: far from the optimum Newton's full step overshoots
_BLOCK = 16  # queries at a time: bounds the weighted copies of the table held in memory


@dataclass(kw_only=True)
class SimilarityWeightedRanking(PromptRouter):
    """Quality of a = mean + (2 R_a - 1) (K - 1) / K, R_a = mean over b of P(a beats b | query).

    Parameters
    ----------
    gamma : how much more the most similar prompt weighs than an unrelated one, >= 1
    prior : drawn battles added for each pair, in battles of the most similar prompt, > 0
    """

    name = "elo"
    summary = "strengths from similar prompts' battles, fitted for each query"
    method = "similarity-based"
    needs = "preference pairs"
    adding_a_model = "few examples"

    gamma: float = 10.0
    prior: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.gamma < np.inf or not 0 < self.prior < np.inf:
            raise UsageError(
                f"router 'elo': expected gamma >= 1 and prior > 0, got {self.settings!r}"
            )

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        # Complete rows first: they need no account of who was run with whom.
        order = np.argsort(np.isnan(data.scores).any(axis=1), kind="stable")
        self._embeddings = np.array(data.embeddings[order], dtype=np.float32, order="C")
        self._set_scores(data.scores[order].astype(np.float32))

    def _set_scores(self, score_NK: Float32) -> None:
        self._scores = score_NK
        known = np.isfinite(score_NK)
        self._num_complete = int(known.all(axis=1).sum())
        self._known = known.astype(np.float32)
        self._filled = np.where(known, score_NK, np.float32(0))

    def _predict(self, queries: Queries) -> Float64:
        is_complete = self._num_complete == len(self._scores)
        estimate = self._complete if is_complete else self._newton
        blocks = [queries.embeddings[i : i + _BLOCK] for i in range(0, len(queries), _BLOCK)]
        found = [estimate(self._weights(block)) for block in blocks]
        return np.concatenate(found) if found else np.zeros((0, len(self.models)))

    def _weights(self, query_QD: Float32) -> Float32:
        """Return w / gamma^2, shape (Q, N): 1 for the most similar prompt."""
        similarity = query_QD @ self._embeddings.T
        highest = np.maximum(similarity.max(axis=1, keepdims=True), 1e-6)
        share = np.clip(similarity / highest, -1.0, 1.0)
        return np.asarray(np.exp(np.float32(np.log(self.gamma)) * (share - 1.0)), dtype=np.float32)

    def _complete(self, weight_QN: Float32) -> Float64:
        """The optimum in closed form, where every model fought every battle."""
        total_Q1 = weight_QN.sum(axis=1, keepdims=True, dtype=np.float64)
        mean_QK = (weight_QN @ self._filled).astype(np.float64) / total_Q1
        middle_Q1 = mean_QK.mean(axis=1, keepdims=True)
        return np.asarray(middle_Q1 + (mean_QK - middle_Q1) * total_Q1 / (total_Q1 + self.prior))

    def _newton(self, weight_QN: Float32) -> Float64:
        won_QK, battles_QKK = self._battles(weight_QN)
        theta_QK = bradley_terry(won_QK, battles_QKK)
        num_models = theta_QK.shape[1]
        beats = sigmoid(theta_QK[:, :, None] - theta_QK[:, None, :])
        share_QK = (beats.sum(axis=2) - 0.5) / max(num_models - 1, 1)  # 0.5: against itself
        seen_QK = (weight_QN @ self._known).astype(np.float64)
        mean_QK = (weight_QN @ self._filled) / np.maximum(seen_QK, 1e-12)
        spread = (num_models - 1) / num_models
        return np.asarray(mean_QK.mean(axis=1, keepdims=True) + (2 * share_QK - 1) * spread)

    def _battles(self, weight_QN: Float32) -> tuple[Float64, Float64]:
        """Return weighted wins (Q, K) and battles of each pair (Q, K, K)."""
        part = self._num_complete
        known, filled = self._known[part:], self._filled[part:]
        whole_QN, partial_QN = weight_QN[:, :part], weight_QN[:, None, part:]
        battles = ((partial_QN * known.T) @ known).astype(np.float64)
        battles += whole_QN.sum(axis=1, dtype=np.float64)[:, None, None]
        ahead = ((partial_QN * filled.T) @ known).astype(np.float64)
        ahead += (whole_QN @ self._filled[:part])[:, :, None]
        won = 0.5 * (battles + ahead - ahead.transpose(0, 2, 1)) + 0.5 * self.prior
        battles += self.prior
        own = np.arange(battles.shape[1])
        battles[:, own, own] = won[:, own, own] = 0.0
        return won.sum(axis=2), battles

    def _state(self) -> Arrays:
        return {"embeddings": self._embeddings, "scores": self._scores}

    def _restore(self, arrays: Arrays) -> None:
        self._embeddings = arrays["embeddings"]
        self._set_scores(arrays["scores"])


def bradley_terry(won_QK: Float64, battles_QKK: Float64) -> Float64:
    """Return the strengths (Q, K), of mean 0, of Q tables of battles among K models.

    ``won_QK`` counts a model's wins, draws as half; ``battles_QKK`` is symmetric with a diagonal of
    0 and no other zeros. Newton's method, damped by a longest step.
    """
    theta = np.zeros_like(won_QK)
    num_models = won_QK.shape[1]
    identity = np.eye(num_models)
    for _ in range(_NEWTON_STEPS):
        beats = sigmoid(theta[:, :, None] - theta[:, None, :])
        slope = won_QK - (battles_QKK * beats).sum(axis=2)
        bend = battles_QKK * beats * (1.0 - beats)
        # Strengths are known up to a constant: the level added here fixes it at a mean of 0.
        level = np.maximum(bend.sum(axis=(1, 2)) / num_models, 1e-12)[:, None, None]
        hessian = bend.sum(axis=2)[:, :, None] * identity - bend + level / num_models
        step = np.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
        theta += np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
    return np.asarray(theta - theta.mean(axis=1, keepdims=True))
