"""Generated outcomes that prompt routers are tested on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from crossroads.prompts.decide import Argmax
from crossroads.prompts.router import PromptRouter, Queries, TrainingSet

DOMAINS = np.array(["algebra", "law", "cooking", "space"], dtype=object)
WORDS = np.array(
    [
        ["solve for x = 3", "What is 7 * 8?", "prove the lemma", "integrate f(x)"],
        ["is the contract void?", "Section 12(b) applies", "who is liable", "appeal the ruling"],
        ["bake bread", "boil rice for ten minutes", "fry onions", "Roast a chicken!"],
        ["the orbit of Mars", "a lunar eclipse", "launch a rocket", "the rings of Saturn"],
    ],
    dtype=object,
)


def outcomes(
    num_prompts: int = 80,
    num_models: int = 3,
    *,
    num_features: int = 16,
    num_domains: int = 2,
    skill: float = 0.9,
    spread: float = 0.6,
    missing: float = 0.0,
    seed: int = 0,
) -> TrainingSet:
    """Prompts around one direction a domain; model k is right with ``skill`` in domain k alone.

    Elsewhere it is right with probability 1 - skill. Later models cost more. ``spread`` is the
    length of the noise added to a direction, ``missing`` the share of cells that were not run.
    """
    rng = np.random.default_rng(seed)
    # The directions, like the models, are the same for every seed: only the prompts differ.
    directions = np.linalg.qr(np.random.default_rng(99).normal(size=(num_features, num_domains)))[0]
    domain = rng.integers(num_domains, size=num_prompts)
    noise = rng.normal(scale=spread / np.sqrt(num_features), size=(num_prompts, num_features))
    rows = directions.T[domain] + noise
    at_home = domain[:, None] == np.arange(num_models) % num_domains
    chance_of_success = np.where(at_home, skill, 1.0 - skill)
    scores = (rng.random((num_prompts, num_models)) < chance_of_success).astype(np.float32)
    lost = rng.random(scores.shape) < missing
    lost[:num_models] &= ~np.eye(num_models, dtype=bool)[:num_prompts]  # every model was run once
    scores[lost] = np.nan
    phrase = rng.integers(WORDS.shape[1], size=num_prompts)
    return TrainingSet(
        models=tuple(f"model-{k}" for k in range(num_models)),
        embeddings=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        scores=scores,
        costs=np.tile(np.arange(1.0, num_models + 1) * 1e-4, (num_prompts, 1)),
        domains=DOMAINS[domain],
        texts=WORDS[domain, phrase],
    )


def change(data: TrainingSet, **changes: Any) -> TrainingSet:
    return dataclasses.replace(data, **changes)


def queries(data: TrainingSet, router: PromptRouter | type[PromptRouter]) -> Queries:
    """The prompts as the router may see them: with the answers only for hindsight."""
    return Queries(
        embeddings=data.embeddings,
        texts=data.texts,
        domains=data.domains,
        truth=data.scores if router.hindsight else None,
        chance=np.full(len(data), 0.25, dtype=np.float32) if router.hindsight else None,
    )


def take(asked: Queries, rows: Any) -> Queries:
    """These rows of every column."""
    given = {f.name: getattr(asked, f.name) for f in dataclasses.fields(asked)}
    return Queries(**{name: None if v is None else v[rows] for name, v in given.items()})


def argmax_quality(estimate: np.ndarray, data: TrainingSet) -> float:
    """Mean score of the models that argmax chooses; for tables without missing cells."""
    chosen = Argmax().choose(estimate, data.costs)
    return float(data.scores[np.arange(len(data)), chosen].mean())


def crossed(num_prompts: int = 400, *, seed: int = 0) -> TrainingSet:
    """Two models, each right where the first two features agree in sign, or where they do not.

    No linear estimate tells them apart; the best one is a coin toss.
    """
    rng = np.random.default_rng(seed)
    rows = np.concatenate(
        [rng.choice([-1.0, 1.0], (num_prompts, 2)), np.zeros((num_prompts, 6))], 1
    )
    rows += rng.normal(scale=0.1, size=rows.shape)
    agree = rows[:, 0] * rows[:, 1] > 0
    data = outcomes(num_prompts, 2)
    return change(
        data,
        embeddings=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        scores=np.column_stack([agree, ~agree]).astype(np.float32),
        domains=None,
        texts=None,
    )
