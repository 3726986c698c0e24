"""``crossroads arena adapters`` on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from crossroads.adapters import tasks
from crossroads.cli.arena.adapters import command
from crossroads.core.arena import leaderboard_schema
from crossroads.core.errors import CrossroadsError, UnavailableError, UsageError
from tests.adapters.collection.toys import task
from tests.adapters.saved import save_adapters, save_base


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(tasks, "get_task", task)

    def names(held_in: bool | None = None) -> list[str]:
        return [] if held_in is False else ["words"]

    monkeypatch.setattr(tasks, "task_names", names)
    save_base(tmp_path / "base")
    save_adapters(tmp_path / "bank")
    yield tmp_path
    tasks._bank.cache_clear()
    tasks._base.cache_clear()


def _invoke(place: Path, *arguments: str) -> Result:
    own = ("--bank", str(place / "bank"), "--model", str(place / "base"))
    few = ("--rows", "2", "--seeds", "2", "--out", str(place / "out"))
    return CliRunner().invoke(
        command, [*own, *few, *arguments],
        env={"CROSSROADS_CACHE": str(place / "cache")}, catch_exceptions=False,
    )  # fmt: skip


def test_a_board_fits_its_schema_and_a_second_run_reuses_cells(place: Path) -> None:
    result = _invoke(place, "--routers", "phatgoose,arrow", "--json")
    board: dict[str, Any] = json.loads(result.stdout)
    jsonschema.validate(board, leaderboard_schema())
    assert board["family"] == "adapters" and board["task"] == "held-in"
    assert {row["router"] for row in board["rows"]} == {
        "base", "uniform", "oracle", "phatgoose", "arrow",
    }  # fmt: skip
    page = (place / "out" / "held-in" / "report.html").read_text("utf-8")
    assert "needs what contributors add" in page
    again = _invoke(place, "--routers", "phatgoose,arrow")
    assert "cells of an earlier run" in again.stdout and "phatgoose" in again.stdout


def test_by_default_all_routers_run_that_the_bank_has_data_for(place: Path) -> None:
    board = json.loads(_invoke(place, "--json").stdout)
    ran = {row["router"] for row in board["rows"] if row["error"] is None}
    assert {"phatgoose", "arrow", "ties", "uniform"} <= ran
    assert not ran & {"x-lora", "retrieval", "named"}
    page = (place / "out" / "held-in" / "report.html").read_text("utf-8")
    for name in ("x-lora", "retrieval", "poly", "task-moe"):
        said = next(n for n in board["notes"] if n.startswith("left out ") and name in n)
        assert name in said.partition(": ")[0] and said.partition(": ")[0] in page
    for group, best in (("adapters", r"[a-z-]+"), ("contributors", "phatgoose")):
        assert re.search(f"Best router of the group {group}</span> <strong>{best}</strong>", page)


def test_a_named_router_that_cannot_run_is_exit_code_one(place: Path) -> None:
    result = _invoke(place, "--routers", "retrieval,arrow")
    assert result.exit_code == 1
    assert "retrieval did not run: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--routers", "arow"], UsageError, "did you mean 'arrow'"),
        (["--tasks", "gsm8k"], UsageError, "task 'gsm8k' is not held-in"),
        (["--task", "held-out"], UsageError, "there is no held-out task"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(
    place: Path, arguments: list[str], error: type[CrossroadsError], message: str
) -> None:
    with pytest.raises(error, match=message):
        _invoke(place, *arguments)
    assert not (place / "out").exists()


def test_tasks_of_both_sides_go_to_their_boards(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tasks, "task_names", lambda held_in=None: ["new"] if held_in is False else ["words", "new"]
    )
    few = ("--task", "all", "--routers", "arrow", "--json", "--seeds", "1")
    with pytest.raises(UsageError, match="unknown task 'newt'; did you mean 'new'"):
        _invoke(place, *few, "--tasks", "words,newt")
    assert not (place / "out").exists()
    result = _invoke(place, *few, "--tasks", "new,words")
    decoder, boards, rest = json.JSONDecoder(), {}, result.stdout
    while rest:
        board, end = decoder.raw_decode(rest)
        boards[board["task"]] = {
            name for name in ("words", "new") if f"nll {name}" in json.dumps(board["metrics"])
        }
        rest = rest[end:].lstrip()
    assert boards == {"held-in": {"words"}, "held-out": {"new"}}
    only = json.loads(_invoke(place, *few, "--tasks", "new").stdout)
    assert only["task"] == "held-out"


def test_a_side_without_tasks_is_not_missed_where_none_of_it_is_wanted(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "task_names", lambda held_in=None: ["new"])
    few = ("--task", "all", "--routers", "arrow", "--json", "--seeds", "1")
    with pytest.raises(UsageError, match="there is no held-in task"):
        _invoke(place, *few)
    with pytest.raises(UsageError, match="unknown task 'newt'; did you mean 'new'"):
        _invoke(place, *few, "--tasks", "newt")
    assert json.loads(_invoke(place, *few, "--tasks", "new").stdout)["task"] == "held-out"
    monkeypatch.setattr(tasks, "task_names", lambda held_in=None: [])
    with pytest.raises(UsageError, match="there is no held-in task"):
        _invoke(place, *few, "--tasks", "new")


def test_an_installation_without_experts_says_how_to_make_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from crossroads.adapters.collection import shipped

    monkeypatch.setattr(shipped, "files", lambda _: tmp_path)
    with pytest.raises(UnavailableError, match="train-collection"):
        CliRunner().invoke(command, [], catch_exceptions=False)
