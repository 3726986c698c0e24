from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from crossroads.adapters.bank import Expert
from crossroads.adapters.collection import making
from crossroads.adapters.collection.making import Made, make_collection
from crossroads.adapters.collection.recipe import Recipe
from crossroads.core.errors import UsageError
from tests.adapters.collection.toys import easy_rows, task, tokenizer
from tests.adapters.toys import tiny_llama

RECIPE = Recipe(steps=32, gate_steps=31, warmup=2, lr=2e-2)  # a checkpoint after 30 steps
TOYS = {"next": task("next", easy_rows("n")), "second": task("second", easy_rows("s"))}


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def _toy_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "get_task", TOYS.__getitem__)
    monkeypatch.setattr(making, "task_names", lambda **_: list(TOYS))


def _make(out: Path, recipe: Recipe = RECIPE, **options: Any) -> list[Made]:
    model = options.pop("model", None) or tiny_llama(initializer_range=0.3, num_hidden_layers=1)
    return make_collection(out, recipe, model=model, tokenizer=tokenizer(), **options)


def _tensors(expert: Expert) -> dict[str, torch.Tensor]:
    found = {f"gate {layer}": gate_I for layer, gate_I in expert.artifacts["gate"].items()}
    for layer, lora in expert.modules.items():
        found |= {f"A {layer}": lora.a_RI, f"B {layer}": lora.b_OR}
    return found


def _equal(one: Expert, other: Expert) -> bool:
    first, second = _tensors(one), _tensors(other)
    return first.keys() == second.keys() and all(
        torch.equal(values, second[name]) for name, values in first.items()
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Made]]:
    out = tmp_path_factory.mktemp("collection")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "get_task", TOYS.__getitem__)
        patch.setattr(making, "task_names", lambda **_: list(TOYS))
        return out, _make(out)


def test_experts_learn_their_tasks_and_their_gates_move(whole: tuple[Path, list[Made]]) -> None:
    _, made = whole
    assert [one.expert.name for one in made] == list(TOYS)
    for one in made:
        assert len(one.losses) == RECIPE.steps
        assert sum(one.losses[-5:]) < 0.8 * sum(one.losses[:5])
        assert one.gate_spread > 0.02
        assert set(one.expert.artifacts["gate"]) == set(one.expert.modules)
        assert {lora.rank for lora in one.expert.modules.values()} == {RECIPE.rank}
        assert {lora.scale for lora in one.expert.modules.values()} == {2.0}


def test_experts_start_from_different_factors(tmp_path: Path) -> None:
    first, second = _make(tmp_path, Recipe(steps=1, gate_steps=1, lr=0.0, warmup=1))
    layer = next(iter(first.expert.modules))
    a_RI, other_RI = (one.expert.modules[layer].a_RI for one in (first, second))
    assert not torch.allclose(a_RI, other_RI, atol=1e-2)


def test_the_base_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_llama()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    _make(tmp_path, Recipe(steps=2, gate_steps=2), model=model, names=["next"])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_part_is_told_when_it_starts_goes_on_and_ends(tmp_path: Path) -> None:
    said: list[str] = []

    def kill(done: int, whole: int) -> None:
        if done == 31:
            raise KilledError

    with pytest.raises(KilledError):
        _make(tmp_path, names=["next"], progress=kill, say=said.append)
    assert said == ["next: factors, starting, 32 steps"]
    _make(tmp_path, names=["next"], say=said.append)
    assert said[1] == "next: factors, going on at step 30 of 32"
    assert said[2].startswith("next: factors done, ")
    assert said[3] == "next: gates, starting, 31 steps"
    assert said[4].startswith("next: gates done, ") and said[5].startswith("next: loss ")


def test_what_is_made_is_not_made_again(whole: tuple[Path, list[Made]]) -> None:
    out, made = whole

    class Untouched:
        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"the base model's {name} was used")

    again = _make(out, model=Untouched())
    assert all(_equal(a.expert, b.expert) for a, b in zip(made, again, strict=True))
    assert [one.losses for one in again] == [one.losses for one in made]


@pytest.mark.parametrize("stop_at", [31, 32 + 31, 32 + 31 + 31])
def test_a_run_that_was_stopped_anywhere_ends_with_the_same_experts(
    stop_at: int, tmp_path: Path, whole: tuple[Path, list[Made]]
) -> None:
    def killing(done: int, total: int) -> None:
        if done == stop_at:
            raise KilledError

    with pytest.raises(KilledError):
        _make(tmp_path, progress=killing)
    steps: list[int] = []
    again = _make(tmp_path, progress=lambda done, total: steps.append(done))
    _, made = whole
    assert all(_equal(a.expert, b.expert) for a, b in zip(made, again, strict=True))
    assert [one.losses for one in again] == [one.losses for one in made]
    redone = [step for step in steps if step <= stop_at]
    assert len(redone) < 10  # the rest came from the checkpoint
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 64])
def test_a_damaged_part_is_made_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    short = Recipe(steps=2, gate_steps=2)
    (first,) = _make(tmp_path, short, names=["next"])
    part = tmp_path / "next.gates.safetensors"
    part.write_bytes(damage(part.read_bytes()))
    (again,) = _make(tmp_path, short, names=["next"])
    assert _equal(first.expert, again.expert)


def test_another_recipe_or_other_rows_make_new_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Recipe(steps=2, gate_steps=2)
    (first,) = _make(tmp_path, short, names=["next"])
    (slower,) = _make(tmp_path, Recipe(steps=2, gate_steps=2, lr=1e-5), names=["next"])
    assert not _equal(first.expert, slower.expert)
    monkeypatch.setitem(TOYS, "next", task("next", easy_rows("m")))
    (other,) = _make(tmp_path, short, names=["next"])
    assert not _equal(first.expert, other.expert)


def test_another_rate_of_the_gates_makes_the_gates_alone_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Recipe(steps=2, gate_steps=2)
    (first,) = _make(tmp_path, short, names=["next"])

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the factors are trained again")

    monkeypatch.setattr(making, "train_expert", refused)
    (again,) = _make(tmp_path, replace(short, gate_lr=5e-2), names=["next"])
    before, after = _tensors(first.expert), _tensors(again.expert)
    for name, values in before.items():
        assert torch.equal(values, after[name]) == (not name.startswith("gate")), name


def test_an_unfinished_part_of_another_recipe_is_passed_over(tmp_path: Path) -> None:
    def killing(done: int, total: int) -> None:
        if done == 31:
            raise KilledError

    with pytest.raises(KilledError):
        _make(tmp_path, names=["next"], progress=killing)
    other = Recipe(steps=2, gate_steps=2)
    (found,) = _make(tmp_path, other, names=["next"])
    assert len(found.losses) == 2


def test_an_unknown_task_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UsageError, match="unknown held-in task 'pubmed'; did you mean 'pubmedqa'"):
        make_collection(tmp_path, RECIPE, names=["pubmed"])
    with pytest.raises(UsageError, match=r"unknown held-in task 'tatoeba-nld'; .* tatoeba-spa$"):
        make_collection(tmp_path, RECIPE, names=["tatoeba-nld"])
