"""``crossroads arena moe`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from crossroads.cli.arena.moe import command
from crossroads.core.errors import CrossroadsError, InputError

QUICK = ("--task", "vision", "--steps", "1", "--jobs", "1")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.slow
def test_a_named_router_is_compared_with_the_baselines(tmp_path: Path) -> None:
    printed = run(*QUICK, "--routers", "top-p:p=0.3", "--out", str(tmp_path), "--json")
    board = json.loads(printed)
    assert board["family"] == "moe"
    routers = {row["router"] for row in board["rows"]}
    assert {"top-p:p=0.3", "dense", "switch", "top2", "hash", "random"} <= routers
    assert all(row["error"] is None for row in board["rows"])
    assert (tmp_path / "vision-quick" / "report.html").is_file()
    again = run(*QUICK, "--routers", "top-p:p=0.3", "--out", str(tmp_path))
    assert "cells of an earlier run" in again
    assert "top-p:p=0.3" in again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--routers", "top-pp"], "top-p"),
        (["--routers", "top-p:q=1"], "setting of router 'top-p'"),
        (["--task", "lm", "--routers", "soft"], "looks at later tokens"),
        (["--task", "speech", "--routers", "hash"], "'hash' reads the ids of tokens"),
        (["--task", "diffusion", "--routers", "hash"], "'hash' reads the ids of tokens"),
        (["--routers", "top2:k=99"], "'top2:k=99', task vision-quick: k: expected between"),
    ],
)
def test_wrong_routers_are_refused_before_training(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CrossroadsError, match=message):
        run(*arguments, "--out", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("crossroads.cli.arena.moe._task", None)  # nothing gets that far
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/there/x: cannot be written: .*; choose"):
        run(*QUICK, "--out", str(tmp_path / "file" / "there" / "x"))
