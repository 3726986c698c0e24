"""A small board: six rows answered by two models, replayed or live."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crossroads.datasets.routerarena import ArenaRow
from crossroads.prompts.experts.base import (
    Chunk,
    Completion,
    ExpertError,
    Request,
    completion,
    last_user_text,
    usage_of,
)
from crossroads.prompts.outcomes import OutcomeTable, prompt_hash
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.routerarena.evaluation import EvaluationSet, live_set, replay_set
from crossroads.prompts.routerarena.submission import INDEX, Submission

MODELS = ("small", "large")
POOL = Pool(
    name="toy",
    models=(
        ModelCard(name="small", price_in=1.0, price_out=2.0),
        ModelCard(name="large", price_in=10.0, price_out=20.0),
    ),
)
TEXTS = (
    "What is the capital of France?",
    "Choose the correct answer. It is one of the following.",
    "Solve the question about the numbers two and three.",
    "Describe a small house. Write it in one line.",
    "Find the largest of the numbers given.",
    "Translate the statement into another language.",
)
# small solves rows 0 and 1, large rows 0, 2, 3 and 4, none row 5.
SCORE = np.array([[1, 1], [1, 0], [0, 1], [0, 1], [0.5, 1], [0, 0.25]], dtype=np.float32)
COST = np.array([[0.001, 0.01]] * 6)


def toy_table(**changes: Any) -> OutcomeTable:
    columns: dict[str, Any] = {
        "prompt_ids": np.array([f"Toy_{n}" for n in range(6)], dtype=object),
        "models": MODELS,
        "score": SCORE,
        "prompt_hash": np.array([prompt_hash(text) for text in TEXTS], dtype=np.uint64),
        "texts": np.array(TEXTS, dtype=object),
        "cost": COST,
        "domain": np.array(["a", "a", "a", "b", "b", "b"], dtype=object),
        "source": "toy outcomes",
    }
    return OutcomeTable(**{**columns, **changes})


def toy_replay() -> EvaluationSet:
    return replay_set(toy_table(), pool=POOL, name="toy")


def toy_rows() -> list[ArenaRow]:
    """Six multiple-choice rows whose right answer is A, B, A, B, A, B."""
    return [
        ArenaRow(
            global_index=f"Toy_{n}",
            source="Toy",
            question=text,
            options=("first", "second"),
            answers=(str(n % 2),),
        )
        for n, text in enumerate(TEXTS)
    ]


def toy_live() -> EvaluationSet:
    return live_set(toy_rows(), POOL, name="toy live")


def toy_submission(
    evaluation: EvaluationSet, models: tuple[str, ...] = MODELS, **config: Any
) -> Submission:
    """Choose the models in turn."""
    return Submission(
        config={"router_name": "toy", "models": list(models), **config},
        predictions=[
            {INDEX: row.global_index, "prompt": row.prompt, "prediction": models[n % len(models)]}
            for n, row in enumerate(evaluation.rows)
        ],
    )


@dataclass
class ToyExpert:
    """Boxes ``letter``, counts its calls, and fails on prompts that hold ``fails_on``."""

    name: str
    letter: str = "A"
    fails_on: str | None = None
    asked: list[str] = field(default_factory=list)

    async def start(self) -> None:
        pass

    async def complete(self, request: Request) -> Completion:
        prompt = last_user_text(request["messages"])
        self.asked.append(prompt)
        if self.fails_on is not None and self.fails_on in prompt:
            raise ExpertError(f"model {self.name!r}: refused", status=400)
        return completion(f"\\boxed{{{self.letter}}}", model=self.name, usage=usage_of(100, 10))

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise NotImplementedError
        yield {}

    async def close(self) -> None:
        pass
