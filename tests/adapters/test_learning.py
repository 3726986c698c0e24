"""Routers that learn from rows of tasks."""

from __future__ import annotations

import copy
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from crossroads.adapters import learning, training
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_models import BaseModel
from crossroads.adapters.collection.arms import measure
from crossroads.adapters.learning import Learnt, learn, learnt, must_learn
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
    assert type(first.router) is type(again.router) is router_class(name)
    numbers = {one.name: number for number, one in enumerate(TASKS)}
    scores = [
        measure(
            base.model, base.tokenizer, one.bank, one.router, TASKS,
            rows=4, seeds=(0,), numbers=numbers,
        )
        for one in (first, again)
    ]  # fmt: skip
    assert first.seconds == again.seconds > 0  # of the learning, not of the reading
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


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fill with the routers that are taught, and not found as they were learnt before."""
    found: list[str] = []

    def teach(spec: str, *rest: object, **more: object) -> object:
        found.append(spec)
        return learn(spec, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(learning, "learn", teach)
    return found


def test_what_was_learnt_of_the_same_is_found(tmp_path: Path, taught: list[str]) -> None:
    for _ in range(2):
        learnt("lora-mixer", base_model(), bank(["words", "lines"]), TASKS, tmp_path, steps=1)
    assert taught == ["lora-mixer"]


def scaled(experts: AdapterBank) -> AdapterBank:
    """Return the same factors with ten times the scale."""
    made = copy.deepcopy(experts)
    for module in made.layers.values():
        module.scale_E.mul_(10)
    return made


def refactored(experts: AdapterBank) -> AdapterBank:
    made = copy.deepcopy(experts)
    next(iter(made.layers.values())).b_EOR.data[0, 0, 0] += 1
    return made


def other_words(base: BaseModel) -> BaseModel:
    """Return the same model with a tokenizer that knows one word less."""
    from tokenizers import Tokenizer

    words = json.loads(base.tokenizer.to_str())
    del words["model"]["vocab"]["z"]
    return replace(base, tokenizer=Tokenizer.from_str(json.dumps(words)))


def test_all_that_decides_what_is_learnt_makes_it_anew(tmp_path: Path, taught: list[str]) -> None:
    base, experts = base_model(), bank(["words", "lines"])
    others: list[dict[str, Any]] = [
        {},
        {"spec": "lora-mixer:k=1"},
        {"steps": 2},
        {"seed": 1},
        {"tasks": TASKS[:1]},
        {"tasks": [TASKS[0], replace(TASKS[1], length=9)]},
        {"bank": bank(["lines", "words"])},
        {"bank": scaled(experts)},
        {"bank": refactored(experts)},
        {"base": base_model(seed=1)},
        {"base": other_words(base)},
    ]
    for place, changes in enumerate(others, start=1):
        told = {"spec": "lora-mixer", "base": base, "bank": experts, "tasks": TASKS, **changes}
        spec, model, of, tasks = (told.pop(name) for name in ("spec", "base", "bank", "tasks"))
        learnt(spec, model, of, tasks, tmp_path, **{"steps": 1, **told})
        assert len(taught) == place, changes


@pytest.mark.parametrize("name", ["code_fingerprint", "hash_of_modules"])
def test_other_code_of_the_room_or_of_a_strangers_router_makes_it_anew(
    name: str, tmp_path: Path, taught: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, experts = base_model(), bank(["words", "lines"])
    for code in ("one", "other", "one"):
        monkeypatch.setattr(learning, name, lambda *_, code=code: code)
        learnt("lorahub", base, experts, TASKS, tmp_path, steps=1)
    assert len(taught) == 2


def test_what_two_want_at_once_is_taught_once(tmp_path: Path, taught: list[str]) -> None:
    base = [base_model(), base_model()]

    def one(place: int) -> Learnt:
        experts = bank(["words", "lines"])
        return learnt("lora-mixer", base[place], experts, TASKS, tmp_path, steps=3)

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(one, range(2))
    assert taught == ["lora-mixer"] and first.seconds == second.seconds


def test_who_waits_for_another_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def wait() -> str:
        with learning._alone(tmp_path / "lock"):
            return "went on"

    with ThreadPoolExecutor(1) as other:
        with FileLock(tmp_path / "lock"):
            waiting = other.submit(wait)
            while not caplog.records:
                assert not waiting.done()
        assert waiting.result() == "went on"
    assert "another process learns the same" in caplog.text


def test_seconds_of_a_run_that_was_stopped_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(training, "train", functools.partial(train, every=7))
    monkeypatch.setattr(learning.time, "perf_counter", lambda: now[0])

    def stop(done: int, of: int) -> None:
        now[0] += 1.0
        if done == 9:
            raise KeyboardInterrupt

    def move(done: int, of: int) -> None:
        now[0] += 1.0

    told = "lora-mixer", base_model(), bank(["words", "lines"]), TASKS, tmp_path
    with pytest.raises(KeyboardInterrupt):
        learnt(*told, steps=11, progress=stop)
    assert learnt(*told, steps=11, progress=move).seconds == 13.0  # 9, and 4 after the 7th


def test_a_seed_draws_the_routers_own_numbers_too() -> None:
    base, experts = base_model(), bank(["words", "lines"])
    for name in ("lora-mixer", "lorahub"):
        made = [learn(name, base, experts, TASKS, steps=1, seed=seed)[1] for seed in (0, 1)]
        assert [router.settings()["seed"] for router in made] == [0, 1]
        _, named = learn(f"{name}:seed=3", base, experts, TASKS, steps=1, seed=1)
        assert named.settings()["seed"] == 3


@pytest.mark.parametrize("name", LEARNERS)
def test_without_tasks_it_says_what_is_missing(name: str) -> None:
    with pytest.raises(UsageError, match="no tasks to learn from: give training rows"):
        learn(settings(name), base_model(), bank(["words", "lines"]), [], steps=1)


def partly_adapted() -> AdapterBank:
    """Return experts of the first block alone."""
    whole = bank(["words", "lines"])
    return AdapterBank(
        replace(one, modules={k: v for k, v in one.modules.items() if ".layers.0." in k})
        for one in whole.experts()
    )


@pytest.mark.parametrize("name", ["multitask", "poly", "flylora", "task-moe"])
def test_experts_made_for_a_router_adapt_the_layers_of_those_given_alone(name: str) -> None:
    experts = partly_adapted()
    own, _ = learn(settings(name), base_model(), experts, TASKS, steps=1)
    assert len(experts.layers) == 5 and {*own.layers} == {*experts.layers}


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", functools.partial(train, every=7))
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
        for own, one in (whole, (gone_on.bank, gone_on.router))
    ]
    for mine, other in zip(*scores, strict=True):
        assert mine.nll == pytest.approx(other.nll, abs=1e-6)


def test_what_cannot_be_learnt_is_refused() -> None:
    base, experts = base_model(), bank(["words", "lines"])
    with pytest.raises(UsageError, match="router arrow: has nothing to learn"):
        learn("arrow", base, experts, TASKS)
    with pytest.raises(InputError, match="no task is named after the expert lines"):
        learn("average-activation", base, experts, TASKS[:1], steps=1)
    empty = replace(TASKS[0], rows={**TASKS[0].rows, "train": ()})
    with pytest.raises(InputError, match="task words: no train row"):
        learn("x-lora", base, experts, [empty], steps=1)
    with pytest.raises(InputError, match="multitask: is one adapter for all tasks, the bank has 2"):
        router_class("multitask")().prepare(experts)
