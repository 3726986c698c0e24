"""Routers that learn from rows of tasks."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crossroads.adapters import joint, learning
from crossroads.adapters.collection.arms import measure
from crossroads.adapters.learning import learn, learnt, must_learn
from crossroads.adapters.lessons import Lesson
from crossroads.adapters.routers import router_class, router_names
from crossroads.adapters.training import train
from crossroads.core.errors import InputError, UsageError
from tests.adapters.collection.toys import easy_rows, task
from tests.adapters.saved import bank, base_model

TASKS = [task("words"), replace(task("lines", easy_rows("z")), length=8)]
LEARNERS = [name for name in router_names() if router_class(name).learns]


def settings(name: str) -> str:
    return {"flylora": "flylora:k=2", "mogu": "mogu:width=2"}.get(name, name)


def test_all_that_have_numbers_of_their_own_can_learn() -> None:
    assert set(LEARNERS) == {
        "average-activation", "dynmole", "flylora", "lora-mixer", "lorahub", "mogu", "multitask",
        "poly", "task-moe", "x-lora",
    }  # fmt: skip
    assert must_learn("x-lora:k=2") and not must_learn("arrow")
    assert not must_learn("saved") and not must_learn("base")


@pytest.mark.parametrize("name", LEARNERS)
def test_what_was_learnt_is_kept_and_measured_alike(name: str, tmp_path: Path) -> None:
    base, experts = base_model(), bank(["words", "lines"])
    before = copy.deepcopy(experts.state_dict())
    weights = copy.deepcopy(base.model.state_dict())
    spec, tasks = settings(name), TASKS[:1] if router_class(name).by_task else TASKS
    first = learnt(spec, base, experts, tasks, tmp_path, steps=3)
    again = learnt(spec, base, experts, tasks, tmp_path, steps=3)
    assert type(first[1]) is type(again[1]) is router_class(name)
    numbers = {one.name: number for number, one in enumerate(TASKS)}
    scores = [
        measure(base.model, base.tokenizer, own, router, TASKS, rows=4, seeds=(0,), numbers=numbers)
        for own, router in (first, again)
    ]
    assert [one.nll for one in scores[0]] == [one.nll for one in scores[1]]
    for key, values in experts.state_dict().items():  # the experts given stay as they are
        assert torch.equal(values, before[key])
    for key, values in base.model.state_dict().items():
        assert torch.equal(values, weights[key])


@pytest.mark.parametrize(
    "name", ["x-lora", "lora-mixer", "poly", "flylora", "multitask", "lorahub"]
)
def test_learning_lowers_the_loss_on_what_was_learnt(name: str) -> None:
    base, experts = base_model(), bank(["words", "lines"])
    one = [replace(TASKS[0], name="lines", rows={**TASKS[1].rows})]
    losses = []
    for steps in (1, 30):
        own, router = learn(settings(name), base, experts, one, steps=steps)
        found = measure(
            base.model, base.tokenizer, own, router, one, rows=8, seeds=(0,), numbers={"lines": 0}
        )
        losses.append(found[0].nll)
    assert losses[1] < losses[0]


def test_a_task_that_was_not_taught_is_routed_all_the_same() -> None:
    base, experts = base_model(), bank(["words", "lines"])
    other = [replace(TASKS[0], name="new", held_in=False)]
    for name in ("poly", "task-moe"):
        own, router = learn(name, base, experts, TASKS, steps=2)
        found = measure(
            base.model, base.tokenizer, own, router, other, rows=3, seeds=(0,),
            numbers={"words": 0, "lines": 1},
        )  # fmt: skip
        assert found[0].nll > 0


def test_batches_mix_tasks_of_like_length_and_name_their_experts() -> None:
    base, experts = base_model(), bank(["letters", "words", "lines"])
    tasks = [
        *TASKS,
        replace(TASKS[0], name="new", length=7),
        replace(TASKS[0], name="long", length=9),
    ]
    lesson = Lesson(model=base.model, tokenizer=base.tokenizer, bank=experts, tasks=tasks, steps=1)
    batch_of = lesson.batches(tokens=28)
    short, long = batch_of(0), batch_of(1)
    assert short.ids_BT.shape == (4, 7) and long.ids_BT.shape == (3, 9)
    assert short.task_ids_B is not None and short.labels_B is not None
    assert short.task_ids_B.tolist() == [0, 2, 0, 2]
    assert short.labels_B.tolist() == [1, -1, 1, -1]  # words is the second expert, new is none
    assert long.task_ids_B is not None and long.task_ids_B.tolist() == [1, 3, 1]
    following = batch_of(2)
    assert not torch.equal(short.ids_BT, following.ids_BT)
    assert torch.equal(batch_of(2).ids_BT, following.ids_BT)


def test_other_steps_rows_or_experts_are_learnt_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, experts = base_model(), bank(["words", "lines"])
    learnt("lora-mixer", base, experts, TASKS, tmp_path, steps=1)
    taught: list[str] = []

    def teach(spec: str, *rest: object, **more: object) -> object:
        taught.append(spec)
        return learn(spec, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(learning, "learn", teach)
    learnt("lora-mixer", base, experts, TASKS, tmp_path, steps=1)
    assert taught == []
    learnt("lora-mixer", base, experts, TASKS, tmp_path, steps=2)
    learnt("lora-mixer", base, experts, TASKS[:1], tmp_path, steps=1)
    learnt("lora-mixer", base, bank(["lines", "words"]), TASKS, tmp_path, steps=1)
    assert len(taught) == 3


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "train", functools.partial(train, every=7))
    base, experts = base_model(), bank(["words", "lines"])
    whole = learn("lora-mixer", base, experts, TASKS, steps=11)

    def stop(done: int, of: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learnt("lora-mixer", base, experts, TASKS, tmp_path, steps=11, progress=stop)
    steps: list[int] = []
    gone_on = learnt(
        "lora-mixer", base, experts, TASKS, tmp_path, steps=11,
        progress=lambda done, of: steps.append(done),
    )  # fmt: skip
    assert steps[0] == 8  # the checkpoint of step 7
    scores = [
        measure(base.model, base.tokenizer, own, one, TASKS, rows=4, seeds=(0,))
        for own, one in (whole, gone_on)
    ]
    for mine, other in zip(*scores, strict=True):
        assert mine.nll == pytest.approx(other.nll, abs=1e-6)


def test_what_cannot_be_learnt_is_refused() -> None:
    base, experts = base_model(), bank(["words", "lines"])
    with pytest.raises(UsageError, match="router arrow: has nothing to learn"):
        learn("arrow", base, experts, TASKS)
    with pytest.raises(UsageError, match="no task is named after the expert lines"):
        learn("average-activation", base, experts, TASKS[:1], steps=1)
    empty = replace(TASKS[0], rows={**TASKS[0].rows, "train": ()})
    with pytest.raises(InputError, match="task words: no train row"):
        learn("x-lora", base, experts, [empty], steps=1)
    with pytest.raises(InputError, match="multitask: is one adapter for all tasks, the bank has 2"):
        router_class("multitask")().prepare(experts)
