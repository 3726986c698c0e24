from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from crossroads.adapters.routers import build_router
from crossroads.cli import cli
from crossroads.core.errors import CrossroadsError, InputError, UsageError
from tests.adapters.saved import save_adapters, save_base

ROWS = [
    {"task": name, "prompt": f"{letter} q", "answer": f" {letter}", "options": [" a", " b", " c"]}
    for name in ("words", "new")
    for letter in "abc"
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    save_base(folder / "base")
    save_adapters(folder / "bank")
    lines = "\n".join(json.dumps(row) for row in ROWS)
    (folder / "rows.jsonl").write_text(lines, "utf-8")
    return folder


def _invoke(place: Path, *arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(
        cli,
        ["adapters", "compare", str(place / "bank"), "--model", str(place / "base"), *arguments],
        env={"CROSSROADS_CACHE": str(place / "cache"), **environment},
        catch_exceptions=False,
    )


def _rows(place: Path) -> tuple[str, ...]:
    return "--rows-file", str(place / "rows.jsonl"), "--rows", "2", "--seeds", "2"


def test_json_is_all_of_stdout_and_has_what_help_says(place: Path) -> None:
    out = place / "told.json"
    result = _invoke(
        place, *_rows(place), "--routers", "phatgoose,arrow", "--json", "--out", str(out)
    )
    told: dict[str, Any] = json.loads(result.stdout)
    assert json.loads(out.read_text("utf-8")) == told
    assert {"model", "experts", "tasks", "rows", "seeds", "threads", "groups", "left_out",
            "notes", "machine", "version", "created"} == set(told)  # fmt: skip
    arms = {arm["router"]: arm for group in told["groups"] for arm in group["arms"]}
    assert set(arms) == {"base", "uniform", "oracle", "phatgoose", "arrow"}
    assert set(arms["arrow"]) == {
        "router", "settings", "needs", "axes", "held_in", "held_out", "gap_closed", "tasks",
        "parameters", "held_bytes", "prepare_seconds", "tokens_per_s", "decode_tokens_per_s",
        "speed_ratio", "error",
    }  # fmt: skip
    assert set(arms["arrow"]["held_in"]["nll"]) == {"mean", "low", "high", "per_seed"}


def test_tables_are_by_group_and_tell_what_was_left_out(place: Path) -> None:
    result = _invoke(place, *_rows(place))
    assert result.stdout.startswith("3 adapters of base; 1 held-in task, 1 held out; 2 rows")
    for line in ("adapters: reads the adapters alone", "contributors: needs what contributors"):
        assert f"\n{line}" in result.stdout
    assert "left out retrieval: " in result.stderr
    reasons = result.stderr.splitlines()
    untrained = next(line for line in reasons if "x-lora" in line)
    assert untrained.startswith("left out dynmole, ") and "x-lora: nobody" in untrained
    assert "left out poly, task-moe: is told" in result.stderr
    assert "note: all seeds" not in result.stdout  # the seeds draw different rows


def test_seeds_with_the_same_rows_have_no_interval_and_a_note(place: Path) -> None:
    rows = ("--rows-file", str(place / "rows.jsonl"), "--rows", "3", "--seeds", "2")
    result = _invoke(place, *rows, "--routers", "arrow")
    assert "note: all seeds score the same rows of every task: there is no interval" in (
        result.stdout
    )
    table = result.stdout.split("+- is half")[0]
    assert "arrow" in table and "+-" not in table


def test_two_seeds_show_no_interval(place: Path) -> None:
    result = _invoke(place, *_rows(place), "--routers", "arrow")
    table, said = result.stdout.split("+- is half")
    assert "arrow" in table and "+-" not in table
    assert said.startswith(" the 95 % interval over seeds; an interval needs 3 seeds or more;")


def test_a_named_router_that_cannot_run_is_exit_code_one_after_the_table(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(click, "echo", lambda line, **_: told.append(line))
    with pytest.raises(InputError, match=r"router retrieval could not be run: .* no embeddings"):
        _invoke(place, *_rows(place), "--routers", "retrieval")
    assert told and not any("retrieval" in line for line in told)  # the error says it, once


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--rows-file", "nowhere"], InputError, "nowhere: no such file; give"),
        (["--rows-file", "x", "--tasks", "gsm8k"], UsageError, "--rows-file gives others"),
        ([], UsageError, "no adapter is named after a task of the collection"),
        (["--tasks", "gsm9k"], UsageError, "did you mean 'gsm8k'"),
        (["--tasks", "gsm9k", "--model", "nowhere"], UsageError, "did you mean 'gsm8k'"),
        (["--rows-file", "nowhere", "--model", "none"], InputError, "nowhere: no such file"),
        (["--routers", "saved", "--model", "none"], UsageError, "holds none; name one"),
        (["--routers", "arrow,x-lora", "--model", "none"], UsageError, "x-lora: nobody trained"),
        (["--tasks", ","], UsageError, "--tasks: expected names"),
    ],
)
def test_wrong_input_is_one_line(
    place: Path, arguments: list[str], error: type[CrossroadsError], message: str
) -> None:
    with pytest.raises(error, match=message) as found:
        _invoke(place, *arguments)
    assert "\n" not in str(found.value)


def test_a_saved_router_is_shown_with_its_name(place: Path, tmp_path: Path) -> None:
    save_adapters(tmp_path / "bank", router=build_router("arrow"))
    (tmp_path / "base").symlink_to(place / "base")
    shown = _invoke(tmp_path, *_rows(place), "--routers", "saved").stdout
    assert "\nsaved (arrow) " in shown


def test_an_unknown_router_is_refused_before_anything_is_measured(place: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'arrow'"):
        _invoke(place, *_rows(place), "--routers", "arrw")


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_loaded(place: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: it is a folder"):
        _invoke(place, "--rows-file", "nowhere", "--out", str(place))
