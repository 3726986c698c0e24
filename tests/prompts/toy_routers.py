"""Tables small enough to reckon by hand, and routers whose choices are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossroads.core.errors import unknown_name
from crossroads.prompts.outcomes import OutcomeTable, prompt_hash
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet

NAN = float("nan")


def make_table(
    scores: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]] | None = None,
    *,
    split: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    chance: float | None = None,
) -> OutcomeTable:
    """Prompts ``p0, p1, ...`` x models ``a, b, ...``; the embedding of a prompt is its number."""
    score = np.array(scores, dtype=np.float32)
    n, k = score.shape
    ids = np.array([f"p{i}" for i in range(n)], dtype=object)
    return OutcomeTable(
        prompt_ids=ids,
        models=tuple("abcdefgh"[:k]),
        score=score,
        prompt_hash=np.array([prompt_hash(i) for i in ids], dtype=np.uint64),
        cost=None if costs is None else np.array(costs, dtype=np.float64),
        split=None if split is None else np.array(split, dtype=object),
        domain=None if domains is None else np.array(domains, dtype=object),
        chance=None if chance is None else np.full(n, chance, dtype=np.float32),
        embeddings={"static": np.arange(n, dtype=np.float32)[:, None]},
        source="made by hand",
    )


def random_table(n: int = 200, k: int = 3, *, seed: int = 0, chance: float | None = 0.25) -> Any:
    """Dearer models are better; half of the prompts belong to each of two domains."""
    rng = np.random.default_rng(seed)
    level = np.linspace(0.4, 0.7, k)
    return make_table(
        (rng.random((n, k)) < level).astype(float).tolist(),
        (np.linspace(1, 5, k) * 1e-4 * rng.uniform(0.5, 1.5, (n, k))).tolist(),
        domains=["law" if i % 2 else "algebra" for i in range(n)],
        chance=chance,
    )


class Toy(PromptRouter):
    def _state(self) -> Arrays:
        return {}

    def _restore(self, arrays: Arrays) -> None:
        """Nothing was learnt."""


@dataclass(kw_only=True)
class Means(Toy):
    name = "best-single"
    method = "none"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self.seen = data
        self.estimate = data.mean_scores()

    def _predict(self, queries: Queries) -> Any:
        assert queries.truth is None, "the answers were shown to a router without hindsight"
        return np.tile(self.estimate, (len(queries), 1))


@dataclass(kw_only=True)
class Cheapest(Means):
    name = "cheapest"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self.estimate = -data.mean_costs()


@dataclass(kw_only=True)
class Random(Means):
    name = "random"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self.estimate = rng.random(len(data.models))


@dataclass(kw_only=True)
class Oracle(Toy):
    name = "oracle"
    hindsight = True
    method = "none"
    needs = "the outcomes to come"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        """Nothing to learn."""

    def _predict(self, queries: Queries) -> Any:
        return queries.truth


@dataclass(kw_only=True)
class HalfOracle(Oracle):
    """Credits a right answer with one half."""

    name = "oracle-chance-aware"

    def credit(self, queries: Queries) -> Any:
        return queries.truth / 2

    def _predict(self, queries: Queries) -> Any:
        return self.credit(queries)


@dataclass(kw_only=True)
class Last(Means):
    """Always the last model, by a margin that never shrinks."""

    name = "last"
    margin: float = 1.0

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self.estimate = np.arange(len(data.models)) * self.margin


TOYS: dict[str, type[PromptRouter]] = {
    cls.name: cls for cls in (Means, Cheapest, Random, Oracle, HalfOracle, Last)
}


def build_toy(spec: str) -> PromptRouter:
    """Stand in for ``build_router``."""
    name, _, margin = spec.partition(":margin=")
    if name not in TOYS:
        raise unknown_name("router", name, TOYS)
    return Last(margin=float(margin)) if margin else TOYS[name]()
