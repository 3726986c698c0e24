"""A router and tables small enough to know the right answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossroads.prompts.outcomes import OutcomeTable, prompt_hash
from crossroads.prompts.router import Arrays, Float, PromptRouter, Queries, TrainingSet

COOKING = ("bake bread", "boil rice", "fry onions", "roast a chicken", "knead the dough")
SPACE = ("the orbit of Mars", "a lunar eclipse", "launch a rocket", "the rings of Saturn", "comets")


@dataclass(kw_only=True)
class ToyRouter(PromptRouter):
    """Ridge regression of each model's score on the embedding."""

    name = "toy"
    strength: float = 0.1
    tags: tuple[str, ...] = ("x",)

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        x = data.embeddings.astype(np.float64)
        self.mean = data.mean_scores()
        target = np.nan_to_num(data.scores - self.mean)
        gram = x.T @ x + self.strength * np.eye(x.shape[1])
        self.weights = np.linalg.solve(gram, x.T @ target)

    def _predict(self, queries: Queries) -> Float:
        return np.asarray(queries.embeddings @ self.weights + self.mean)

    def _state(self) -> Arrays:
        return {"weights": self.weights, "mean": self.mean}

    def _restore(self, arrays: Arrays) -> None:
        self.weights, self.mean = arrays["weights"], arrays["mean"]


@dataclass(kw_only=True)
class BlindRouter(ToyRouter):
    """Estimates the model's mean; sees no embedding."""

    name = "blind"
    needs_embeddings = False

    def _predict(self, queries: Queries) -> Float:
        return np.tile(self.mean, (len(queries), 1))


@dataclass(kw_only=True)
class HindsightRouter(ToyRouter):
    name = "hindsight"
    hindsight = True


TOYS = {cls.name: cls for cls in (ToyRouter, BlindRouter, HindsightRouter)}


def toy_table(copies: int = 12, *, costs: bool = True) -> OutcomeTable:
    """A cook that is right on cooking, an astronomer on space, a generalist on half of both."""
    texts = [f"{verb} {n}" for n in range(copies) for verb in (*COOKING, *SPACE)]
    is_cooking = np.array([n % 10 < 5 for n in range(len(texts))])
    half = np.arange(len(texts)) % 2 == 0
    score = np.column_stack([is_cooking, ~is_cooking, half]).astype(np.float32)
    return OutcomeTable(
        prompt_ids=np.array([f"p{n}" for n in range(len(texts))], dtype=object),
        models=("cook", "astronomer", "generalist"),
        score=score,
        prompt_hash=np.array([prompt_hash(text) for text in texts], dtype=np.uint64),
        texts=np.array(texts, dtype=object),
        domain=np.where(is_cooking, "cooking", "space").astype(object),
        cost=np.tile([1e-3, 2e-3, 1e-4], (len(texts), 1)) if costs else None,
        source="toy",
    )
