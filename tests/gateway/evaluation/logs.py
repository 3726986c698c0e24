"""Logs for the tests: an outcome table replayed under a logging policy that explores.

The scores are real (``mmlu-pro:served``), the traffic is replayed: prompts are drawn at random, the
logging policy chooses, and its choice's recorded score is the reward. So the truth is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from crossroads.gateway.evaluation import Log, Target
from crossroads.prompts.readers import read_outcomes

MODELS = (
    "gemini-1.5-pro-002",
    "gemini-1.5-flash-002",
    "Meta-Llama-3_1-8B-Instruct",
    "mathstral-7B",
)


@dataclass(frozen=True)
class World:
    """Every prompt's score and cost by model, (M, K), and what two policies choose, (M,)."""

    score: Any
    cost: Any
    embedding: Any
    served: Any
    candidate: Any

    @property
    def truth(self) -> float:
        """Mean score of the candidate over all prompts."""
        return float(self.score[np.arange(len(self.score)), self.candidate].mean())

    @property
    def served_truth(self) -> float:
        """Mean score of the served policy before it explores."""
        return float(self.score[np.arange(len(self.score)), self.served].mean())


@cache
def world() -> World:
    table = read_outcomes("mmlu-pro:served", models=MODELS)
    table = table.take(table.complete)
    embedding = table.embeddings["static"]
    directions = np.random.default_rng(0).normal(size=(embedding.shape[1], len(MODELS)))
    score = table.score.astype(np.float64)
    taste = embedding @ directions
    merit = 2 * score.mean(axis=0)
    return World(
        score=score,
        cost=table.cost,
        embedding=embedding[:, :32],
        served=np.argmax(taste + merit, axis=1),
        candidate=np.argmax(taste[:, ::-1] + merit, axis=1),
    )


def replayed(
    rng: np.random.Generator, n: int, *, epsilon: float = 0.4, with_features: bool = False
) -> tuple[Log, Target]:
    """Return a replayed log of ``n`` calls, and what the candidate would have done on them."""
    all_of = world()
    rows = rng.integers(len(all_of.score), size=n)
    num_models = len(MODELS)
    probability = np.full((n, num_models), epsilon / num_models)
    probability[np.arange(n), all_of.served[rows]] += 1 - epsilon
    action = (probability.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    log = make_log(
        action,
        probability,
        all_of.score[rows, action],
        cost=all_of.cost[rows, action],
        price=all_of.cost[rows],
        features=all_of.embedding[rows] if with_features else None,
    )
    choice = np.eye(num_models)[all_of.candidate[rows]]
    return log, Target(name="candidate", models=MODELS, probability=choice)


def make_log(action: Any, probability: Any, reward: Any, **changes: Any) -> Log:
    """Return a log of calls that are sessions of their own."""
    n, num_models = np.shape(probability)
    ids = np.array([f"dec_{k}" for k in range(n)], dtype=object)
    unknown = np.full((n, num_models), np.nan)
    action = np.asarray(action, dtype=np.int64)
    facts: dict[str, Any] = {
        "models": MODELS if num_models == len(MODELS) else tuple("abcdefgh"[:num_models]),
        "action": action,
        "propensity": np.asarray(probability)[np.arange(n), action],
        "reward": np.asarray(reward, dtype=np.float64),
        "cost": np.zeros(n),
        "probability": np.asarray(probability, dtype=np.float64),
        "score": unknown,
        "price": unknown,
        "session": ids,
        "decision_id": ids,
        "time": np.arange(n, dtype=np.float64),
    }
    return Log(**{**facts, **changes})
