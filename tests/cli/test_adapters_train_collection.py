from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from crossroads.adapters.collection import making, shipped, tasks
from crossroads.adapters.collection.making import Made
from crossroads.cli import cli
from crossroads.core.errors import InputError
from tests.adapters.collection.toys import task
from tests.adapters.toys import experts, tiny_llama


@pytest.fixture(autouse=True)
def _made_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two experts of a tiny model in place of the training."""

    def make(out: Path, recipe: Any, *, names: Any, progress: Any, say: Any) -> list[Made]:
        found = experts(tiny_llama(), names or ["one", "two"])
        for number, expert in enumerate(found, start=1):
            progress(number, len(found))
            say(f"{expert.name}: made")
        return [Made(expert=e, losses=(2.0, 1.0), seconds=3.0, gate_spread=0.1) for e in found]

    monkeypatch.setattr(making, "make_collection", make)
    monkeypatch.setattr(tasks, "task_names", lambda **_: ["one", "two"])
    monkeypatch.setattr(shipped, "get_task", task)
    monkeypatch.setattr(shipped, "default_encoder", lambda: "static")


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["adapters", "train-collection", *arguments])


def test_a_whole_collection_is_written_as_a_bank(tmp_path: Path) -> None:
    result = _run("--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"2 experts in {tmp_path / 'bank'}\n"
    assert "one: made\ntwo: made" in result.stderr
    assert shipped.check_files(tmp_path / "bank") > 0


def test_json_is_all_of_stdout(tmp_path: Path) -> None:
    told = json.loads(_run("--out", str(tmp_path), "--json").stdout)
    assert told["complete"] is True and told["folder"] == str(tmp_path)
    assert told["experts"]["two"] == {
        "about": "", "parameters": told["experts"]["one"]["parameters"],
        "first_loss": 1.5, "last_loss": 1.5, "gate_spread": 0.1, "cpu_seconds": 3.0,
    }  # fmt: skip


def test_other_numbers_of_steps_are_another_recipe(tmp_path: Path) -> None:
    _run("--out", str(tmp_path), "--steps", "7", "--gate-steps", "3")
    recipe = json.loads((tmp_path / "bank" / shipped.MANIFEST).read_text("utf-8"))["recipe"]
    assert (recipe["steps"], recipe["gate_steps"], recipe["rank"]) == (7, 3, 2)
    assert _run("--out", str(tmp_path), "--steps", "0").exit_code == 2


def test_some_experts_alone_make_no_bank(tmp_path: Path) -> None:
    result = _run("--out", str(tmp_path), "--only", "two")
    assert result.stdout == f"two in {tmp_path / 'parts'}\n"
    assert not (tmp_path / "bank").exists()


def test_the_cache_is_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path))
    assert _run().exit_code == 0
    assert (tmp_path / "adapters" / "bank" / "manifest.json").is_file()


def test_a_folder_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "make_collection", lambda *_, **__: pytest.fail("it trained"))
    (tmp_path / "file").touch()
    result = _run("--out", str(tmp_path / "file"))
    assert isinstance(result.exception, InputError)
    assert f"{tmp_path / 'file'}: cannot be written: Not a directory" in str(result.exception)
