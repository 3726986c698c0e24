"""The table of routers in the docs is what their attributes say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from crossroads.prompts.routers import router_names

SCRIPT = Path(__file__).parents[1] / "scripts" / "build_taxonomy_table.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_taxonomy_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script: ModuleType) -> None:
    text = script.PAGE.read_text("utf-8")
    assert "<!-- taxonomy -->" in text
    assert script.rebuilt() == text, "run: python scripts/build_taxonomy_table.py"


def test_every_shipped_router_has_exactly_one_row(script: ModuleType) -> None:
    made = script.rebuilt()
    for name in router_names():
        assert made.count(f"| `{name}` |") == 1


def test_routers_stand_in_groups_of_timing_and_method(script: ModuleType) -> None:
    made = script.rebuilt()
    headings = ["**pre-generation, baselines and bounds**", "**pre-generation, similarity-based**"]
    baselines, similar, supervised = (
        made.index(h) for h in [*headings, "**pre-generation, supervised**"]
    )
    assert baselines < made.index("| `oracle` |") < similar < made.index("| `knn` |") < supervised
    assert supervised < made.index("| `ridge` |")
