"""The arena of adapters on a tiny model."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from crossroads.adapters import measuring, tasks
from crossroads.adapters.base_models import load_base
from crossroads.adapters.collection.rows import Split
from crossroads.adapters.footprint import Speed
from crossroads.adapters.tasks import AdaptersTask
from crossroads.core.arena import leaderboard_schema, run_arena
from crossroads.core.errors import UsageError
from crossroads.core.report import HeatMap, render_report, role_of
from crossroads.models.embedding_cache import cache_folder
from tests.adapters.collection.toys import easy_rows, task
from tests.adapters.saved import save_adapters, save_base

TASKS = {
    "words": task("words"),
    "lines": task("lines", easy_rows("z")),
    "new": replace(task("new", easy_rows("y")), held_in=False),
}


@pytest.fixture(autouse=True)
def _toy_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    def names(*, held_in: bool | None = None) -> list[str]:
        return [name for name, one in TASKS.items() if held_in in (None, one.held_in)]

    monkeypatch.setattr(tasks, "get_task", TASKS.__getitem__)
    monkeypatch.setattr(tasks, "task_names", names)
    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path / "cache"))
    yield
    tasks._bank.cache_clear()
    tasks._base.cache_clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arena")
    save_base(folder / "base")
    save_adapters(folder / "bank")
    return folder


def arena(place: Path, **changes: Any) -> AdaptersTask:
    fields: dict[str, Any] = {"side": "held_in", "rows": 3, **changes}
    return AdaptersTask(folder=place / "bank", model=place / "base", **fields)


def test_routers_and_baselines_are_judged_on_the_same_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = Speed(prefill=9.0, decode=2.0, prefill_ratio=0.5)  # turns of a toy seldom agree
    monkeypatch.setattr(measuring, "measure_speed", lambda *_: speed)
    one = arena(place)
    board = run_arena(one, ["phatgoose", "retrieval"], seeds=2, jobs=1)
    assert {row.router for row in board.rows if row.error is None} == {
        "base", "uniform", "oracle", "phatgoose",
    }  # fmt: skip
    assert "has no embeddings" in str(board["retrieval"].error)
    mine = board["phatgoose"]
    by_task = [mine.metrics[f"nll {name}"].per_seed for name in ("words", "lines")]
    for seed, mean in enumerate(mine.metrics["nll"].per_seed):
        assert mean == pytest.approx(sum(values[seed] or 0 for values in by_task) / 2)
    assert mine.metrics["accuracy"].mean is not None
    assert mine.metrics["parameters"].mean and mine.metrics["speed"].mean == 0.5
    assert "speed" not in board["base"].metrics
    assert role_of(board["oracle"]) == "bound"
    told = {row["router"]: row for row in board.to_dict()["rows"]}
    assert told["phatgoose"]["group"] == "contributors" and told["base"]["group"] == "reference"
    assert told["phatgoose"]["axes"]["user_dataset"] == "Zero-Shot"
    assert told["base"]["axes"] is None and "group" not in told["retrieval"]
    jsonschema.validate(board.to_dict(), leaderboard_schema())
    page = render_report(board, [])
    assert "user dataset: Zero-Shot" in page
    plots = one.plots(board)
    heat = next(plot for plot in plots if isinstance(plot, HeatMap))
    assert heat.columns == ["words", "lines"] and "uniform" not in heat.rows


def test_rows_are_counted_in_words(place: Path) -> None:
    assert arena(place, rows=1).description.endswith("at most 1 test row of each")
    assert arena(place, rows=3).description.endswith("at most 3 test rows of each")


def test_a_note_names_tasks_whose_rows_every_seed_shares(place: Path) -> None:
    most = len(TASKS["words"].rows["test"])
    assert not [note for note in arena(place, rows=3).notes if "every seed" in note]
    said = [
        note for note in arena(place, rows=most, tasks=("words",)).notes if "every seed" in note
    ]
    assert len(said) == 1 and "an interval: words;" in said[0]


def test_routers_that_learn_are_taught_on_the_experts_tasks_for_both_sides(place: Path) -> None:
    taught = [arena(place, side=side, teach=2) for side in ("held_in", "held_out")]
    cells = [one.run("lora-mixer", 0) for one in taught]
    assert all("taught here, 2 steps" in str(cell.notes["told"]) for cell in cells)
    learnt = list((cache_folder() / "adapters" / "learnt").iterdir())
    assert len(learnt) == 1  # once for both
    own = arena(place, teach=0)
    assert own.identify("lora-mixer") != taught[0].identify("lora-mixer")
    assert own.identify("arrow") == arena(place).identify("arrow")
    assert "taught" not in str(taught[0].run("arrow", 0).notes["told"])
    with pytest.raises(UsageError, match="nobody trained"):
        arena(place).run("lora-mixer", 0)


def test_no_steps_are_each_routers_own_number_and_none_no_teaching(place: Path) -> None:
    own, none = arena(place, teach=0)._teaching(), arena(place)._teaching()
    assert own is not None and own.steps is None and none is None
    assert [one.name for one in own.tasks] == ["words", "lines"]
    assert "taught here, 40 steps" in arena(place, teach=0)._taught("lora-mixer")


def test_a_bank_without_any_task_of_the_collection_has_nothing_to_teach(place: Path) -> None:
    save_adapters(place / "nobody", names=["mine"])
    one = AdaptersTask(
        folder=place / "nobody", model=place / "base", side="held_out", rows=1, teach=1
    )
    assert one.lessons == ()
    board = run_arena(one, ["lorahub", "task-moe"], seeds=1, jobs=1)
    assert board["lorahub"].error is None
    assert "no tasks to learn from" in str(board["task-moe"].error)


def test_the_same_seed_gives_the_same_figures(place: Path, tmp_path: Path) -> None:
    runs = []
    for folder in ("one", "two"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CROSSROADS_CACHE", str(tmp_path / folder))
            runs.append(arena(place).run("arrow", 1).metrics)
    assert runs[0]["nll"] == runs[1]["nll"] and runs[0]["nll words"] == runs[1]["nll words"]
    assert arena(place, rows=2).run("arrow", 0).metrics["nll"] != runs[0]["nll"]


def test_a_cell_whose_rows_were_all_scored_before_tells_no_time_of_a_row(place: Path) -> None:
    for router in ("base", "ties"):
        first, again = (arena(place, rows=1).run(router, 0) for _ in range(2))
        assert first.decide_seconds and again.decide_seconds is None
        assert first.metrics["nll"] == again.metrics["nll"]


def test_held_out_tasks_have_no_oracle(place: Path) -> None:
    one = arena(place, side="held_out")
    assert one.task_names == ("new",) and one.name == "held-out"
    assert "oracle" not in one.baselines
    assert "accuracy" not in one.run("uniform", 0).metrics  # free answers


def test_a_cell_is_made_anew_when_its_rows_experts_or_router_change(place: Path) -> None:
    one = arena(place)
    prints = {arena(place, **c).fingerprint for c in ({}, {"rows": 2}, {"side": "held_out"})}
    assert len(prints) == 3 and one.fingerprint in prints
    save_adapters(place / "other", names=["words"])
    other = AdaptersTask(folder=place / "other", model=place / "base", side="held_in", rows=3)
    assert other.fingerprint not in prints
    assert one.identify("phatgoose:k=1") != one.identify("phatgoose")
    with pytest.raises(UsageError, match="did you mean 'phatgoose'"):
        one.identify("phatgose")
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_cell_is_made_anew_when_the_model_or_its_tokenizer_changes(tmp_path: Path) -> None:
    def print_of(name: str) -> str:
        return AdaptersTask(
            folder=tmp_path / "bank", model=tmp_path / name, side="held_in"
        ).fingerprint

    save_adapters(tmp_path / "bank")
    for name in ("base", "copy", "words", "doubled"):
        save_base(tmp_path / name)
    file = tmp_path / "words" / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace('"WhitespaceSplit"', '"Whitespace"'), "utf-8")
    model = load_base(tmp_path / "doubled").model
    with torch.no_grad():
        for values in model.parameters():
            values.mul_(2)
    model.save_pretrained(tmp_path / "doubled")
    assert print_of("copy") == print_of("base")
    assert len({print_of(name) for name in ("base", "words", "doubled")}) == 3


def test_a_cell_is_made_anew_when_rows_to_choose_or_to_learn_by_change(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> dict[str, str]:
        one, other = arena(place, teach=1), arena(place, side="held_out", teach=1)
        found = {name: one.identify(name) for name in ("arrow", "lora-mixer", "lorahub")}
        return found | {
            "lora-mixer held out": other.identify("lora-mixer"),
            "lorahub held out": other.identify("lorahub"),
            "untaught": arena(place).identify("lora-mixer"),
            "rows": one.fingerprint,
        }

    def changed(name: str, split: Split) -> set[str]:
        rows = TASKS[name].rows
        fewer = replace(TASKS[name], rows={**rows, split: rows[split][1:]})
        before = told()
        with monkeypatch.context() as patch:
            patch.setitem(TASKS, name, fewer)
            return {key for key, value in told().items() if value != before[key]}

    assert changed("words", "validation") == {"rows"}
    learners = {"lora-mixer", "lorahub", "lora-mixer held out", "lorahub held out"}
    assert changed("words", "train") == learners
    assert changed("new", "train") == {"lorahub held out"}


@pytest.mark.parametrize("router", ["base", "saved", "glider", "lora-mixer"])
def test_a_cell_is_made_anew_when_any_code_of_the_room_changes(
    place: Path, router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = arena(place, teach=2).identify(router)
    monkeypatch.setattr(tasks, "code_fingerprint", lambda: "other code")
    assert arena(place, teach=2).identify(router) != before


def test_a_cell_of_a_strangers_router_is_made_anew_when_its_code_changes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossroads.adapters.routers.uniform import Uniform

    file = tmp_path / "theirs.py"
    monkeypatch.setattr("inspect.getfile", lambda _: str(file))
    monkeypatch.setattr(tasks, "router_class", lambda _: Uniform)
    found = set()
    for text in ("a = 1", "a = 2", "a = 1"):
        file.write_text(text, "utf-8")
        found.add(arena(place).identify("uniform"))
    assert len(found) == 2


def test_some_tasks_can_be_chosen_on_their_side_alone(place: Path) -> None:
    assert arena(place, tasks=("lines",)).task_names == ("lines",)
    with pytest.raises(UsageError, match="task 'new' is not held-in; there is"):
        arena(place, tasks=("new",)).task_names  # noqa: B018
    save_adapters(place / "strangers", names=["mine"])
    strangers = AdaptersTask(folder=place / "strangers", model=place / "base", side="held_in")
    with pytest.raises(UsageError, match="there is no held-in task"):
        strangers.task_names  # noqa: B018
