"""The command line as a whole: what it loads, what it prints on errors, how it exits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from crossroads import __version__, cli
from crossroads.core.errors import InputError, UnavailableError

HEAVY = {
    "torch",
    "scipy",
    "sklearn",
    "pyarrow",
    "pandas",
    "plotly",
    "lightgbm",
    "aiohttp",
    "uvicorn",
    "moocore",
    "rich.progress",
}


def modules_loaded_by(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter has after the statement and not before it."""
    code = (
        "import contextlib, io, json, sys\n"
        "before = set(sys.modules)\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    {statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(json.loads(run.stdout))


def crossroads(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"from crossroads.cli import main; main({list(arguments)!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_loads_little() -> None:
    loaded = modules_loaded_by("from crossroads.cli import main; main(['--help'])")
    assert "crossroads.cli" in loaded
    assert not loaded & (HEAVY | {"numpy", "rich", "pydantic", "yaml"})
    assert len(loaded) < 250


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["verify", "--help"]])
def test_light_commands_load_no_heavy_library(arguments: list[str]) -> None:
    loaded = modules_loaded_by(f"from crossroads.cli import main; main({arguments!r})")
    assert f"crossroads.cli.{arguments[0]}" in loaded
    assert not loaded & HEAVY


def test_list_imports_no_router() -> None:
    loaded = modules_loaded_by("from crossroads.cli import main; main(['list', '--json'])")
    assert not {name for name in loaded if name.startswith("crossroads.prompts.routers.")}


def test_help_names_every_command_in_order() -> None:
    run = crossroads("--help")
    assert run.returncode == 0
    listed = run.stdout.partition("Commands:")[2]
    places = [listed.index(f"\n  {name} ") for name in cli._COMMANDS]
    assert places == sorted(places)


def test_version_is_the_package_version() -> None:
    assert crossroads("--version").stdout.split()[-1] == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lsit"], "No such command"),
        (["list", "prompt"], "did you mean 'prompts'"),
        (["verify", "thor", "--al"], "No such option"),
        (["verify"], "expected system names or --all"),
    ],
)
def test_wrong_usage_is_one_line_on_stderr_and_exits_with_two(arguments, message: str) -> None:
    run = crossroads(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("raised", "code", "printed"),
    [
        (InputError("table.csv, row 3: no score"), 1, "error: table.csv, row 3: no score\n"),
        (UnavailableError("port 8000 is taken"), 1, "error: port 8000 is taken\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised, code, printed
) -> None:
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr(cli.cli, "main", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == code
    assert capsys.readouterr().err == printed


def test_the_exit_code_of_a_command_reaches_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.cli, "main", lambda **_: 1)
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", "x"])
    assert stop.value.code == 1
