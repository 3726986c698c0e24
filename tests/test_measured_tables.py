"""The measured tables of README and docs are what the committed results say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

from crossroads.core.arena import leaderboard_schema

SCRIPT = Path(__file__).parents[1] / "scripts" / "build_measured_tables.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_measured_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", _script().PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_committed_results(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "<!-- measured: " in text
    assert _script().rebuilt(page) == text, "run: python scripts/build_measured_tables.py"


@pytest.mark.parametrize("side", _script().SIDES)
def test_committed_boards_of_adapters_have_the_groups_of_the_code(side: str) -> None:
    script = _script()
    board = json.loads((script.RESULTS / f"adapters-arena-{side}.json").read_text("utf-8"))
    jsonschema.validate(board, leaderboard_schema())
    assert script.grouped(board) == board, "run: python scripts/build_measured_tables.py --groups"
    groups = {row["router"]: row["group"] for row in board["rows"]}
    assert groups["lora-mixer"] == groups["x-lora"] == groups["flylora"] == "shared data"
    assert groups["lorahub"] == groups["best-single"] == "examples"
