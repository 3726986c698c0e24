"""What a router that has to learn is given: a model, experts, and rows of several tasks.

``Router.learn`` takes a ``Lesson``; ``crossroads.adapters.learning`` gives it and keeps what came
out. A batch mixes rows of tasks of like length, so that losses of balance see several tasks at once
and short rows are not padded to long ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.collection.batches import (
    batch_of_rows,
    fitting,
    row_tokens,
    training_batches,
)
from crossroads.adapters.joint import train_jointly
from crossroads.adapters.skills import skills_of
from crossroads.adapters.texts import TextBatch
from crossroads.adapters.training import TrainSettings
from crossroads.core.errors import UsageError
from crossroads.core.progress import Progress
from crossroads.datasets.batches import batch_indices

if TYPE_CHECKING:
    from crossroads.adapters.collection.tasks import Task
    from crossroads.adapters.contract import Router

TOKENS = 512  # of a batch, padding included
_USUAL = 100  # rows of a task that tell how long its rows usually are


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """Everything to learn from.

    Raises UsageError for no tasks.

    Attributes
    ----------
    model, tokenizer : frozen causal language model, given back as it was; ``tokenizers.Tokenizer``
    bank : the finished experts
    tasks : at least one, whose training rows are learnt from; a task's number is its place
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

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UsageError(
                "no tasks to learn from: give training rows, of the collection's tasks that "
                "adapters are named after or of your own"
            )

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
    def rank(self) -> int:
        """The largest rank of an expert."""
        return max(int(module.rank_E.max()) for module in self.bank.layers.values())

    def batches(self, tokens: int = TOKENS) -> Callable[[int], TextBatch]:
        """Return a function from a step to its batch of several tasks.

        Tasks are sorted by length and halved; the halves take turns, and within a half its tasks
        do, row by row. A batch has the rows that fit into ``tokens`` at the length of the longest
        task of its half, or at twice that of its usual rows where a few are far longer; a batch
        that meets one of those ends before it. ``task_ids_B`` are places in ``tasks``;
        ``labels_B`` the expert named after a row's task, -1 = none.
        """
        words, tasks = self.tokenizer, self.tasks
        rows = [fitting(words, task, "train") for task in tasks]
        order = sorted(range(len(tasks)), key=lambda t: tasks[t].length)
        middle = (len(order) + 1) // 2
        halves = [half for half in (order[:middle], order[middle:]) if half]
        own = [self.bank.position(t.name) if t.name in self.bank.names else -1 for t in tasks]

        @cache
        def size(task: int, row: int) -> int:
            return row_tokens(words, replace(rows[task][row], options=None))

        def usual(task: int) -> float:
            return median(size(task, row) for row in range(min(_USUAL, len(rows[task]))))

        lengths = [
            min(tasks[half[-1]].length, math.ceil(2 * max(map(usual, half)))) for half in halves
        ]
        starts = [[0] for _ in halves]  # of the batches of a half, among the rows that it draws

        def drawn(half: list[int], place: int) -> tuple[int, int]:
            """Return the task and the row at a place."""
            visit, among = divmod(place, len(half))
            task = half[among]
            row = batch_indices(len(rows[task]), 1, step=visit, seed=self.seed + task)[0]
            return task, int(row)

        def taken(which: int, start: int) -> list[tuple[int, int]]:
            """Return the tasks and rows of the batch of a half that begins at a place."""
            found: list[tuple[int, int]] = []
            longest = 0
            for place in range(start, start + max(1, tokens // lengths[which])):
                one = drawn(halves[which], place)
                longest = max(longest, size(*one))
                if found and longest * (len(found) + 1) > tokens:
                    break
                found.append(one)
            return found

        def batch_of(step: int) -> TextBatch:
            turn, which = divmod(step, len(halves))
            begun = starts[which]
            while len(begun) <= turn:
                begun.append(begun[-1] + len(taken(which, begun[-1])))
            found = taken(which, begun[turn])
            batch = batch_of_rows(
                words,
                [rows[task][row] for task, row in found],
                length=max(size(*one) for one in found),
            )
            return replace(
                batch,
                task_ids_B=torch.tensor([task for task, _ in found]),
                labels_B=torch.tensor([own[task] for task, _ in found]),
            )

        return batch_of

    def fresh_experts(self) -> AdapterBank:
        """Return experts that change nothing yet, as many, of the layers and the rank of these."""
        return skills_of(self.sizes, skills=self.bank.n_experts, rank=self.rank, seed=self.seed)

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
