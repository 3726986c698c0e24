"""What one router does over a bank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossroads.adapters import insertion, learning, measuring
from crossroads.adapters.collection import evaluation
from crossroads.adapters.collection.arms import measure
from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.comparing import compare
from crossroads.adapters.learning import learn
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


def test_learning_counts_as_preparing_whenever_it_was_and_never_as_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock(monkeypatch)

    def slow(*given: Any, **more: Any) -> Any:
        now[0] += 100.0
        return learn(*given, **more)

    monkeypatch.setattr(learning, "learn", slow)
    base, made = base_model(), bank(["words", "lines"])
    teaching = Teaching(tasks=(TASKS[0],), folder=tmp_path, steps=1)
    for name, seconds in (("lora-mixer", (120.0, 4.0)), ("lorahub", (240.0, 4.0))):
        for seed in (0, 1):  # taught for the first, in a model; found again for the second
            arm = measure_router(name, base, made, TASKS, rows=1, seeds=[seed], teaching=teaching)
            assert (arm.prepare_seconds, arm.score_seconds) == seconds


def clock(patch: pytest.MonkeyPatch) -> list[float]:
    """Let a row take 2 seconds to score, and a bank 10 to be put into the model."""
    now = [0.0]
    score, insert = evaluation.score_rows, insertion.RoutedModel._insert

    def scored(model: Any, tokenizer: Any, rows: Any, **more: Any) -> Any:
        now[0] += 2.0 * len(rows)
        return score(model, tokenizer, rows, **more)

    def inserted(routed: Any) -> None:
        now[0] += 10.0
        insert(routed)

    patch.setattr(measuring.time, "perf_counter", lambda: now[0])
    patch.setattr(evaluation, "score_rows", scored)
    patch.setattr(insertion.RoutedModel, "_insert", inserted)
    patch.setattr(measuring, "measure_speed", lambda *_: None)
    return now


@pytest.mark.parametrize("router", ["arrow", "ties"])
def test_rows_that_were_kept_are_not_timed(
    router: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch)
    arms = [
        measure_router(
            router, base_model(), bank(["words"]), TASKS, rows=rows, seeds=(0,), cache=tmp_path
        )
        for rows in (2, 3, 3)
    ]
    assert [(arm.score_seconds, arm.scored_rows) for arm in arms] == [(8.0, 4), (4.0, 2), (0.0, 0)]
    assert [arm.prepare_seconds for arm in arms] == [10.0] * 3


def test_choosing_the_best_expert_counts_as_preparing_whenever_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, base, made = clock(monkeypatch), base_model(), bank(["words", "lines"])
    given = {"rows": 1, "cache": tmp_path}
    arms = [measure_router("best-single", base, made, TASKS, seeds=[s], **given) for s in (0, 1)]
    assert [arm.prepare_seconds for arm in arms] == [10.0 + 2 * (10.0 + 3 * 2.0)] * 2
    assert arms[0].settings == arms[1].settings
    other, before = replace_validation(TASKS[0]), now[0]
    measure_router("best-single", base, made, [other], seeds=(0,), **given)
    assert now[0] - before > 32.0  # chosen anew


def replace_validation(one: Task) -> Task:
    return replace(one, rows={**one.rows, "validation": one.rows["test"][4:8]})


def test_routers_told_a_number_are_told_that_of_the_lessons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def scored(*given: Any, **more: Any) -> Any:
        told.append(more["numbers"])
        return measure(*given, **more)

    monkeypatch.setattr(measuring, "measure", scored)
    teaching = Teaching(tasks=(task("lines"), TASKS[0]), folder=tmp_path, steps=1)
    experts = bank(["words", "lines"])
    measure_router("poly", base_model(), experts, TASKS[:1], rows=1, seeds=(0,), teaching=teaching)
    assert told == [{"lines": 0, "words": 1}]


def test_the_best_expert_is_the_best_on_tasks_of_experts_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    def scored(*given: Any, **more: Any) -> Any:
        asked.append([one.name for one in given[4]])
        return measure(*given, **more)

    monkeypatch.setattr(measuring, "measure", scored)
    best_expert(base_model(), bank(["words"]), TASKS)
    best_expert(base_model(), bank(["lines"]), TASKS)
    assert asked == [["words"], ["words", "new"]]


def test_what_needs_no_teaching_is_as_without_it(tmp_path: Path) -> None:
    base, made = base_model(), bank(["words", "lines"])
    teaching = Teaching(tasks=(TASKS[0],), folder=tmp_path)
    taught = measure_router("arrow", base, made, TASKS, rows=2, seeds=(0,), teaching=teaching)
    plain = measure_router("arrow", base, made, TASKS, rows=2, seeds=(0,))
    assert taught.scores == plain.scores and not any(tmp_path.iterdir())
