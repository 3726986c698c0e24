"""``crossroads adapters teach``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crossroads.cli import cli
from crossroads.core.errors import CrossroadsError, InputError, UsageError
from tests.adapters.saved import save_adapters, save_base


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teach")
    save_base(folder / "base")
    save_adapters(folder / "bank")
    rows = [
        {"task": task, "prompt": f"{letter} q", "answer": f" {answer}"}
        for task, answer in (("words", "b"), ("lines", "z"), ("letters", "y"))
        for letter in "acdefg"
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def _invoke(place: Path, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(
        cli,
        ["adapters", command, *arguments, "--model", str(place / "base")],
        env={"CROSSROADS_CACHE": str(place / "cache")},
        catch_exceptions=False,
    )


def _teach(place: Path, out: str, *arguments: str) -> Result:
    rows = () if "--tasks" in arguments else ("--rows-file", str(place / "rows.jsonl"))
    return _invoke(place, "teach", str(place / "bank"), str(place / out), *rows, *arguments)


@pytest.mark.parametrize("router", ["x-lora", "lorahub", "average-activation", "multitask"])
def test_other_commands_take_what_was_taught(place: Path, router: str) -> None:
    result = _teach(place, router, "--router", router, "--steps", "2", "--json")
    told = json.loads(result.stdout)
    assert told["router"] == router and told["tasks"] == ["words", "lines", "letters"]
    routed = _invoke(place, "route", str(place / router), "--prompt", "a q", "--tokens", "1")
    assert f"router {router}" in routed.stdout


def test_a_person_reads_one_line(place: Path) -> None:
    result = _teach(place, "mixer", "--router", "lora-mixer:k=1", "--steps", "1")
    assert result.stdout == (
        f"lora-mixer, taught 1 step of 3 tasks, and 3 adapters in {place / 'mixer'}\n"
    )
    with pytest.raises(InputError, match="exists already; choose another folder, or --overwrite"):
        _teach(place, "mixer", "--router", "lora-mixer", "--steps", "1")
    _teach(place, "mixer", "--router", "lora-mixer", "--steps", "1", "--overwrite")


def test_nothing_is_written_into_the_adapters_that_are_read(place: Path) -> None:
    with pytest.raises(InputError, match=r"words: lies in .*bank, which is read"):
        _teach(place, "bank/words", "--router", "x-lora", "--overwrite")


def test_rows_that_do_not_count_are_told(place: Path, tmp_path: Path) -> None:
    row = {"task": "words", "prompt": "a q", "answer": " b"}
    rows = [row, row, {**row, "prompt": "a " * 80}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    result = _invoke(
        place, "teach", str(place / "bank"), str(tmp_path / "out"), "--router", "x-lora",
        "--steps", "1", "--rows-file", str(tmp_path / "rows.jsonl"),
    )  # fmt: skip
    assert "1 row of more than 64 tokens left out, the first in line 3" in result.stderr
    assert "1 row left out that stood there before, the first in line 2" in result.stderr


def test_tasks_that_teach_nothing_are_not_counted(place: Path, tmp_path: Path) -> None:
    save_adapters(tmp_path / "bank", ["words", "lines"])
    result = _invoke(
        place, "teach", str(tmp_path / "bank"), str(tmp_path / "out"), "--rows-file",
        str(place / "rows.jsonl"), "--router", "average-activation", "--steps", "1",
    )  # fmt: skip
    assert "taught 1 step of 2 tasks" in result.stdout
    assert "note: router average-activation learns of each adapter's own task: ignored letters" in (
        result.stderr
    )


def test_a_router_with_too_many_ranks_is_told_how_to_have_fewer(place: Path) -> None:
    with pytest.raises(UsageError, match="name the router as flylora:k=1"):
        _teach(place, "fly", "--router", "flylora", "--steps", "1")


def test_a_router_that_is_no_rival_is_taught_with_a_note(place: Path) -> None:
    result = _teach(place, "mogu", "--router", "mogu", "--steps", "1")
    assert "note: router mogu: blends whole variants of one model" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--router", "arrow"), "router arrow: has nothing to learn"),
        (("--router", "x-lorra"), "did you mean 'x-lora'"),
        (("--router", "x-lora:kk=1"), "unknown setting"),
        (("--router", "poly"), "goes by the number of a task"),
        (("--router", "x-lora", "--tasks", "word"), "unknown task"),
        (("--router", "x-lora", "--tasks", "word", "--model", "none"), "unknown task"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(
    place: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(CrossroadsError, match=message):
        _teach(place, "refused", *arguments)
    assert not (place / "refused").exists()


def test_tasks_and_rows_are_two_ways(place: Path) -> None:
    with pytest.raises(UsageError, match="--rows-file gives others"):
        _invoke(
            place, "teach", str(place / "bank"), str(place / "both"), "--router", "x-lora",
            "--tasks", "gsm8k", "--rows-file", str(place / "rows.jsonl"),
        )  # fmt: skip
    with pytest.raises(UsageError, match="no adapter is named after a task of the collection"):
        _invoke(place, "teach", str(place / "bank"), str(place / "no"), "--router", "x-lora")
