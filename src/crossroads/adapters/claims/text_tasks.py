"""Real tasks on SmolLM2 for routers by task: intents of requests, and sentences to English.

Four tasks of two families and two frames; a batch is of one task, and tasks take turns. Every seed
draws its own batches and test rows, the same for all arms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.collection.batches import fitting, training_batches
from crossroads.adapters.collection.evaluation import evaluate
from crossroads.adapters.collection.recipe import RECIPE
from crossroads.adapters.collection.tasks import Task, get_task
from crossroads.adapters.contract import Router
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.task_level.vectors import text_vectors
from crossroads.adapters.texts import TextBatch
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer

FAMILIES = {
    "clinc-a": "intents", "clinc-b": "intents",
    "tatoeba-deu": "translation", "tatoeba-fra": "translation",
}  # fmt: skip
TARGETS = RECIPE.targets
_TEXTS = 64  # prompts a task's vector is the centroid of


class TextTasks:
    """The tasks, the model, and how arms are measured.

    Parameters
    ----------
    rows : test rows of every task and seed
    names : of tasks of the collection
    model : SmolLM2; None = loaded when first needed
    """

    def __init__(
        self, *, rows: int, names: Sequence[str] = tuple(FAMILIES), model: Any = None
    ) -> None:
        self.rows, self.names = rows, tuple(names)
        self._model = model

    @property
    def description(self) -> str:
        return (
            f"SmolLM2-135M on {', '.join(self.names)}, {self.rows} test rows of each task and seed"
        )

    @property
    def model(self) -> Any:
        if self._model is None:
            self._model = load_smollm2()
        return self._model

    @cached_property
    def tokenizer(self) -> Any:
        return smollm2_tokenizer()

    @cached_property
    def tasks(self) -> list[Task]:
        return [get_task(name) for name in self.names]

    def training(self, seed: int) -> Callable[[int], TextBatch]:
        """Return a function from a step to a batch of the task whose turn it is."""
        batches = [training_batches(self.tokenizer, task, seed=seed) for task in self.tasks]

        def batch_of(step: int) -> TextBatch:
            turn, place = divmod(step, len(batches))
            batch = batches[place](turn)
            return replace(batch, task_ids_B=torch.full((len(batch.ids_BT),), place))

        return batch_of

    def vectors(self) -> torch.Tensor:
        """Return the centroid of embedded training prompts of every task, (T, D)."""
        rows = [fitting(self.tokenizer, task, "train")[:_TEXTS] for task in self.tasks]
        return text_vectors([[row.prompt for row in own] for own in rows])

    def nll(self, bank: AdapterBank, router: Router, *, seed: int) -> dict[str, float]:
        """Return nats per answer token by task."""
        routed = RoutedModel(self.model, bank, router)
        facts = {
            task.name: (lambda rows, place=place: {"task_ids": torch.full((len(rows),), place)})
            for place, task in enumerate(self.tasks)
        }
        try:
            found = evaluate(
                self.model,
                self.tokenizer,
                self.tasks,
                arm="by task",
                rows=self.rows,
                seeds=(seed,),
                facts=facts,
            )
        finally:
            routed.unwrap()
        return {score.task: score.nll for score in found}
