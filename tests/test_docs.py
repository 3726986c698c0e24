"""What README and docs show works: Python blocks and commands are run, make targets exist."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from crossroads.cli import cli, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|bash|console)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEVER_ENDS = {"serve", "demo"}


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(page.read_text("utf-8"))
            if language in languages]  # fmt: skip


def commands(page: Path, *languages: str) -> list[list[str]]:
    joined = "\n".join(blocks(page, *languages)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


def with_blocks(*languages: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, *languages)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("python"), ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "page", module)
    for code in blocks(page, "python"):
        exec(compile(code, name(page), "exec"), vars(module))


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("bash"), ids=name)
def test_commands_in_bash_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(page, "bash"):
        if words[0] != "crossroads" or words[1] in NEVER_ENDS:
            continue
        with pytest.raises(SystemExit) as ended:
            main(words[1:])
        assert ended.value.code == 0, shlex.join(words)


@pytest.mark.parametrize("page", with_blocks("bash", "console"), ids=name)
def test_commands_and_their_options_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for words in commands(page, "bash", "console"):
        if words[0] == "make":
            assert words[1] in targets, shlex.join(words)
        if words[0] == "crossroads" and words[1:] and not words[1].startswith("-"):
            command: click.Command | None = cli.get_command(click.Context(cli), words[1])
            if isinstance(command, click.Group) and words[2:]:
                command = command.get_command(click.Context(command), words[2])
            assert command is not None, shlex.join(words)
            given = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
            known = {option for parameter in command.params for option in parameter.opts}
            assert given <= known | {"--help"}, shlex.join(words)


def test_the_reference_names_modules_that_exist() -> None:
    pages = list((ROOT / "docs" / "reference").glob("*.md"))
    names = [n for page in pages for n in re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.M)]
    assert names
    for module in names:
        importlib.import_module(module)
