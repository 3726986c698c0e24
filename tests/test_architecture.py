"""The shape of the house: which room may import which, and how long a file may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crossroads

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "crossroads"
SHARED = {"core", "models", "datasets"}
ALLOWED = {
    "core": {"core"},
    "models": {"core", "models"},
    "datasets": {"core", "datasets"},
    "gateway": {*SHARED, "adapters", "gateway", "prompts"},
    "cli": {*SHARED, "adapters", "cli", "gateway", "moe", "prompts"},
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "crossroads":
                names = [f"crossroads.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "crossroads" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
                rooms.add(parts[1])
    return rooms


@pytest.mark.parametrize("room", sorted(p.name for p in PACKAGE.iterdir() if p.is_dir()))
def test_imports_point_inward(room: str) -> None:
    allowed = ALLOWED.get(room, {*SHARED, room})
    for path in (PACKAGE / room).rglob("*.py"):
        beyond = imported_rooms(path) - allowed
        assert not beyond, f"{path.relative_to(ROOT)} imports {', '.join(sorted(beyond))}"


def test_no_file_grows_past_five_hundred_lines() -> None:
    sources = [p for folder in ("src", "tests", "scripts", "benchmarks", "examples")
               for p in (ROOT / folder).rglob("*.py")]  # fmt: skip
    assert sources
    long = {str(p.relative_to(ROOT)): n for p in sources
            if (n := len(p.read_text("utf-8").splitlines())) > 500}  # fmt: skip
    assert not long


def test_nothing_is_called_utils_or_helpers() -> None:
    named = [p for p in ROOT.glob("src/**/*") if re.search(r"util|helper", p.name)]
    assert not named


def test_the_changelog_starts_with_the_version_of_the_package() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first is not None
    assert first.group(1) == crossroads.__version__


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ["numpy", "scipy", "sklearn", "torch", "pyarrow", "pydantic", "aiohttp", "click"]
    code = (
        "import sys; before = set(sys.modules); import crossroads; "
        "new = set(sys.modules) - before; "
        f"assert not new & set({heavy!r}), new; assert len(new) < 20, sorted(new)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
