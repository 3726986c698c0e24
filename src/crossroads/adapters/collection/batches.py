"""Rows of a task as batches of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from crossroads.adapters.collection.rows import Row, Split
from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.texts import TextBatch, text_batch
from crossroads.core.errors import InputError
from crossroads.datasets.batches import batch_indices


def fitting(tokenizer: Any, task: Task, split: Split) -> list[Row]:
    """Return the rows of a split whose prompt and longest option have at most ``task.length``
    tokens together, in order. Raises InputError where none has.
    """
    kept = [row for row in task.rows[split] if row_tokens(tokenizer, row) <= task.length]
    if not kept:
        raise InputError(f"task {task.name}: no {split} row has at most {task.length} tokens")
    return kept


def training_batches(
    tokenizer: Any, task: Task, *, seed: int, split: Split = "train"
) -> Callable[[int], TextBatch]:
    """Return a function from a step to its batch, padded to ``task.length``.

    Epochs are permutations by ``seed``; every arm with the same seed sees the same batches.
    """
    rows = fitting(tokenizer, task, split)

    def batch_of(step: int) -> TextBatch:
        places = batch_indices(len(rows), min(task.batch, len(rows)), step=step, seed=seed)
        return batch_of_rows(tokenizer, [rows[p] for p in places], length=task.length)

    return batch_of


def batch_of_rows(tokenizer: Any, rows: Sequence[Row], *, length: int) -> TextBatch:
    """Return the rows with their answers, padded to ``length`` tokens."""
    return text_batch(
        tokenizer,
        [row.prompt for row in rows],
        [row.answer for row in rows],
        length=length,
        fixed=True,
    )


def row_tokens(tokenizer: Any, row: Row) -> int:
    """Return the tokens of a row's prompt and longest option together."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count(row.prompt) + max(count(answer) for answer in row.options or (row.answer,))
