"""What one router does over a bank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.comparing import compare
from crossroads.adapters.measuring import Teaching, best_expert, measure_router
from crossroads.core.errors import UsageError
from tests.adapters.collection.toys import easy_rows, task
from tests.adapters.saved import bank, base_model

TASKS = [task("words"), replace(task("new", easy_rows("z")), held_in=False)]


def test_the_best_single_expert_is_chosen_by_validation_rows_alone() -> None:
    base, made = base_model(), bank()
    asked = replace(TASKS[0], rows={**TASKS[0].rows, "test": TASKS[0].rows["validation"]})
    losses = {
        name: measure_router(f"best-single:expert={name}", base, made, [asked], rows=3, seeds=(0,))
        .scores[0].nll
        for name in made.names
    }  # fmt: skip
    best = best_expert(base, made, TASKS)
    assert losses[best] == min(losses.values())
    assert best_expert(base, made, [without_test(TASKS[0])]) == best
    board = compare(base, made, ["best-single"], TASKS, rows=1, seeds=(0,))
    assert board["best-single"].settings == {"expert": best}
    assert board["best-single"].group == "examples"


def without_test(one: Task) -> Task:
    return replace(one, rows={**one.rows, "test": ()})


def test_an_expert_cannot_be_chosen_without_validation_rows() -> None:
    bare = replace(TASKS[0], rows={**TASKS[0].rows, "validation": ()})
    board = compare(base_model(), bank(), ["best-single"], [bare], rows=1, seeds=(0,))
    assert "no validation rows" in str(board["best-single"].error)


def test_a_router_that_learns_is_taught_the_lessons_and_measured_on_the_tasks(
    tmp_path: Path,
) -> None:
    base, made = base_model(), bank(["words", "lines"])
    lessons = (TASKS[0], task("lines", easy_rows("b")))
    teaching = Teaching(tasks=lessons, folder=tmp_path, steps=2)
    assert teaching.numbers == {"words": 0, "lines": 1}
    for name in ("x-lora", "poly", "multitask"):
        arm = measure_router(name, base, made, TASKS, rows=2, seeds=(0,), teaching=teaching)
        assert [score.task for score in arm.scores] == ["words", "new"]
        assert arm.speed is not None and arm.held_bytes > 0
    assert len(list(tmp_path.glob("*/bank/router.json"))) == 3
    with pytest.raises(UsageError, match="nobody trained its numbers; crossroads adapters teach"):
        measure_router("x-lora", base, made, TASKS, rows=2, seeds=(0,))


def test_what_is_learnt_by_task_is_learnt_from_every_tasks_own_rows(tmp_path: Path) -> None:
    base, made = base_model(), bank(["words", "lines"])
    teaching = Teaching(tasks=(TASKS[0],), folder=tmp_path, steps=3)
    arm = measure_router("lorahub", base, made, TASKS, rows=2, seeds=(0, 1), teaching=teaching)
    assert [(s.task, s.seed) for s in arm.scores] == [
        ("words", 0), ("words", 1), ("new", 0), ("new", 1),
    ]  # fmt: skip
    assert len(list(tmp_path.glob("*/bank/router.json"))) == 2


def test_what_needs_no_teaching_is_as_without_it(tmp_path: Path) -> None:
    base, made = base_model(), bank(["words", "lines"])
    teaching = Teaching(tasks=(TASKS[0],), folder=tmp_path)
    taught = measure_router("arrow", base, made, TASKS, rows=2, seeds=(0,), teaching=teaching)
    plain = measure_router("arrow", base, made, TASKS, rows=2, seeds=(0,))
    assert taught.scores == plain.scores and not any(tmp_path.iterdir())
