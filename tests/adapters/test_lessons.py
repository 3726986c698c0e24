"""What a router that has to learn is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.collection.rows import Row
from crossroads.adapters.lessons import Lesson
from crossroads.core.errors import UsageError
from tests.adapters.collection.toys import LETTERS, easy_rows, task
from tests.adapters.saved import bank, base_model
from tests.adapters.toys import experts, tiny_llama

TASKS = [task("words"), replace(task("lines", easy_rows("z")), length=8)]


def lesson_of(tasks: Any = TASKS, of: AdapterBank | None = None, seed: int = 0) -> Lesson:
    base = base_model()
    return Lesson(
        model=base.model, tokenizer=base.tokenizer, bank=of or bank(["letters", "words", "lines"]),
        tasks=tasks, steps=1, seed=seed,
    )  # fmt: skip


def test_batches_mix_tasks_of_like_length_and_name_their_experts() -> None:
    tasks = [
        *TASKS,
        replace(TASKS[0], name="new", length=7),
        replace(TASKS[0], name="long", length=9),
    ]
    batch_of = lesson_of(tasks).batches(tokens=28)
    short, long = batch_of(0), batch_of(1)
    assert len(short.ids_BT) == 4 and len(long.ids_BT) == 3
    assert short.task_ids_B is not None and short.labels_B is not None
    assert short.task_ids_B.tolist() == [0, 2, 0, 2]
    assert short.labels_B.tolist() == [1, -1, 1, -1]  # words is the second expert, new is none
    assert long.task_ids_B is not None and long.task_ids_B.tolist() == [1, 3, 1]
    following = batch_of(2)
    assert not torch.equal(short.ids_BT, following.ids_BT)
    assert torch.equal(batch_of(2).ids_BT, following.ids_BT)


def test_a_seed_draws_other_batches() -> None:
    first, same, other = (lesson_of(seed=seed).batches(tokens=28)(0) for seed in (0, 0, 1))
    assert torch.equal(first.ids_BT, same.ids_BT) and not torch.equal(first.ids_BT, other.ids_BT)


def test_new_experts_have_the_largest_rank_of_those_given() -> None:
    mixed = AdapterBank(
        [*experts(tiny_llama(), ["small"], rank=1), *experts(tiny_llama(), ["large"], rank=3)]
    )
    lesson = lesson_of(of=mixed)
    assert lesson.rank == 3
    assert {module.rank for module in lesson.fresh_experts().layers.values()} == {3}


def test_a_lesson_without_tasks_is_refused() -> None:
    with pytest.raises(UsageError, match="no tasks to learn from"):
        lesson_of([])


def test_a_batch_is_as_wide_as_its_longest_row() -> None:
    batch_of = lesson_of([replace(TASKS[1], length=60)]).batches(tokens=120)
    assert batch_of(0).ids_BT.shape == (20, 3) and batch_of(0).mask_BT.all()


def test_one_long_row_leaves_the_others_their_full_batches() -> None:
    """60 tokens among rows of 3: the others stand 20 in a batch, each row once an epoch."""
    long = Row(prompt=" ".join("a" * 59), answer=" b")
    rows = (*(Row(prompt=f"{letter} q", answer=" z") for letter in LETTERS), long)
    tasks = [replace(task("words", rows), length=60), replace(task("lines", rows), length=60)]
    batch_of = lesson_of(tasks).batches(tokens=60)
    batches = [batch_of(step) for step in range(12)]
    assert all(batch.ids_BT.numel() <= 60 for batch in batches)
    assert sum(len(batch.ids_BT) > 1 for batch in batches) > 6
    seen = {str(ids.tolist()) for batch in batches[::2] for ids in batch.ids_BT[:, :1]}
    assert len(seen) == 26  # every first letter
    again = lesson_of(tasks).batches(tokens=60)
    for step in (11, 3):  # a run that goes on asks for later steps first
        assert torch.equal(again(step).ids_BT, batches[step].ids_BT)
