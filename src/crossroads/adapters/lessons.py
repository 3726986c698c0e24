"""What a router that has to learn is given: a model, experts, and rows of several tasks.

``Router.learn`` takes a ``Lesson``; ``crossroads.adapters.learning`` gives it and keeps what came
out. A batch mixes rows of tasks of like length, so that losses of balance see several tasks at once
and short rows are not padded to long ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.collection.batches import batch_of_rows, fitting, training_batches
from crossroads.adapters.joint import train_jointly
from crossroads.adapters.skills import new_skills
from crossroads.adapters.texts import TextBatch
from crossroads.adapters.training import TrainSettings
from crossroads.core.progress import Progress
from crossroads.datasets.batches import batch_indices

if TYPE_CHECKING:
    from crossroads.adapters.collection.tasks import Task
    from crossroads.adapters.contract import Router

TOKENS = 512  # of a batch, padding included


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """Everything to learn from.

    Attributes
    ----------
    model, tokenizer : frozen causal language model, given back as it was; ``tokenizers.Tokenizer``
    bank : the finished experts
    tasks : whose training rows are learnt from; a task's number is its place
    steps : optimiser steps, or what a router counts in their place
    seed : of batches and of numbers that are drawn
    checkpoint, identity, progress : of ``training.train``
    """

    model: nn.Module
    tokenizer: Any
    bank: AdapterBank
    tasks: Sequence[Task]
    steps: int
    seed: int = 0
    checkpoint: Path | None = None
    identity: str = ""
    progress: Progress | None = None

    @property
    def settings(self) -> TrainSettings:
        return TrainSettings(steps=self.steps, seed=self.seed)

    @property
    def training(self) -> dict[str, Any]:
        """The arguments that every trainer of this room takes alike."""
        return {
            "checkpoint": self.checkpoint,
            "identity": self.identity,
            "progress": self.progress,
        }

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the layers that the experts adapt."""
        return {name: (one.inputs, one.outputs) for name, one in self.bank.layers.items()}

    @property
    def targets(self) -> list[str]:
        """The last parts of the names of those layers."""
        return list(dict.fromkeys(name.rpartition(".")[2] for name in self.bank.layers))

    @property
    def rank(self) -> int:
        """The largest rank of an expert."""
        return max(int(module.rank_E.max()) for module in self.bank.layers.values())

    def batches(self, tokens: int = TOKENS) -> Callable[[int], TextBatch]:
        """Return a function from a step to its batch of several tasks.

        Tasks are sorted by length and halved; the halves take turns, and within a half its tasks
        do, row by row. ``task_ids_B`` are places in ``tasks``; ``labels_B`` the expert named after
        a row's task, -1 = none.
        """
        words, tasks = self.tokenizer, self.tasks
        rows = [fitting(words, task, "train") for task in tasks]
        order = sorted(range(len(tasks)), key=lambda t: tasks[t].length)
        middle = (len(order) + 1) // 2
        halves = [half for half in (order[:middle], order[middle:]) if half]
        own = [self.bank.position(t.name) if t.name in self.bank.names else -1 for t in tasks]

        def batch_of(step: int) -> TextBatch:
            turn, which = divmod(step, len(halves))
            half = halves[which]
            length = tasks[half[-1]].length
            count = max(1, tokens // length)
            drawn, numbers = [], []
            for place in range(turn * count, (turn + 1) * count):
                visit, among = divmod(place, len(half))
                task = half[among]
                row = batch_indices(len(rows[task]), 1, step=visit, seed=self.seed + task)[0]
                drawn.append(rows[task][row])
                numbers.append(task)
            batch = batch_of_rows(words, drawn, length=length)
            return replace(
                batch,
                task_ids_B=torch.tensor(numbers),
                labels_B=torch.tensor([own[task] for task in numbers]),
            )

        return batch_of

    def fresh_experts(self) -> AdapterBank:
        """Return experts that change nothing yet, as many, of the layers and the rank of these."""
        return new_skills(
            self.model,
            targets=self.targets,
            skills=self.bank.n_experts,
            rank=self.rank,
            seed=self.seed,
        )

    def of_task(self, name: str) -> Callable[[int], TextBatch]:
        """Return a function from a step to a batch of one task alone."""
        task = next(task for task in self.tasks if task.name == name)
        return training_batches(self.tokenizer, task, seed=self.seed)

    def train_gates(self, router: Router, *, lr: float) -> AdapterBank:
        """Train a router over the experts, which stay as they are; return the bank."""
        train_jointly(
            self.model, self.bank, router, self.batches(), self.settings,
            factors="none", lr=lr, **self.training,
        )  # fmt: skip
        return self.bank
