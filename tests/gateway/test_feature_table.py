"""The comparison in the docs claims nothing that no test shows, and its figures are measured."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gateway" / "compared.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)(\[[^\]`]+\])?`")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, its head first."""
    _, _, rest = PAGE.read_text("utf-8").partition(f"\n## {heading}\n")
    lines = rest.partition("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table, heading
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [cells[0], *cells[2:]]


def features() -> list[tuple[str, str]]:
    head, *found = rows("Features")
    ours = head.index("**crossroads**")
    assert {len(row) for row in found} == {len(head)}
    return [(row[0], row[ours]) for row in found]


def shown_by() -> dict[str, str]:
    return {row[0]: row[1] for row in rows("Shown by")[1:]}


@cache
def known_tests(path: str) -> dict[str, bool]:
    """Return the tests of a file, and whether each has parameters."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {
        node.name: any("parametrize" in ast.unparse(mark) for mark in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize(("feature", "mark"), features(), ids=[name for name, _ in features()])
def test_every_mark_of_ours_names_tests(feature: str, mark: str) -> None:
    assert re.match(r"(Y|p|-)( \(.+\))?$", mark)
    named = TEST.findall(shown_by().get(feature, ""))
    assert bool(named) == (mark[0] != "-")


def test_what_none_has_is_shown_where_we_claim_it() -> None:
    found = rows("What none of them has")[1:]
    assert [row[0] for row in found] == [f"({letter})" for letter in "abcdefgh"]
    for row in found:
        assert bool(TEST.findall(row[3])) == (row[2] != "-"), row[0]


@pytest.mark.parametrize("page", [PAGE, ROOT / "SECURITY.md"], ids=lambda path: path.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = TEST.findall(page.read_text("utf-8"))
    assert len(named) > 10
    for path, name, parameters in named:
        assert (ROOT / path).is_file(), path
        assert name in known_tests(path), f"{path}::{name}"
        assert not parameters or known_tests(path)[name], f"{path}::{name} has no parameters"
    quoted = re.findall(r"`tests/[^`]*::[^`]*`", page.read_text("utf-8"))
    assert len(quoted) == len(named), "a name that is not written as PATH::TEST"


# --- figures --------------------------------------------------------------------------------------


@pytest.fixture
def script() -> ModuleType:
    path = ROOT / "scripts" / "build_gateway_table.py"
    spec = importlib.util.spec_from_file_location("build_gateway_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_committed_result(script: ModuleType) -> None:
    text = PAGE.read_text("utf-8")
    assert script.BLOCK.search(text)
    assert script.rebuilt(text) == text, "run: python scripts/build_gateway_table.py"
    plot = script.RESULT.with_suffix(".svg")
    if plot.is_file():
        assert PAGE.with_name(plot.name).read_bytes() == plot.read_bytes()


def result(**servers: float) -> dict[str, Any]:
    """A result of one scenario in which a server needs so many milliseconds."""
    names = {"stub": "stub, direct", "ours": "crossroads rules", "peer": "LiteLLM proxy"}

    def row(cpu: float) -> dict[str, Any]:
        figures = {"cpu_ms": cpu, "requests_per_s": 1500.0, "p50_ms": cpu + 1, "p99_ms": cpu + 2}
        return {"ready_s": 1.25, "rss_mib": 99.6, "json c=32": figures}

    return {
        "date": "2026-01-02",
        "starts": 3,
        "rounds": 5,
        "scenarios": [{"name": "json c=32", "connections": 32, "requests": 9, "stream": False}],
        "machine": {"python": "3.11.7", "architecture": "x86_64", "cpus": 2},
        "servers": {names[name]: row(cpu) for name, cpu in servers.items()},
    }


def test_ratios_and_added_latency_are_reckoned_from_the_same_run(script: ModuleType) -> None:
    table = script.table(result(stub=0.5, ours=0.25, peer=10.0))
    ours = next(line for line in table.splitlines() if line.startswith("| crossroads rules"))
    assert ours == (
        "| crossroads rules | 0.250 (1/40) | 1,500 | -0.25 / -0.25 | 100 | 1.2 |"
    )  # fmt: skip
    assert "stub, direct" not in table
    assert "In brackets" in table


def test_without_the_peer_no_ratio_is_shown(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "gateway-speed.json"
    path.write_text(json.dumps(result(stub=0.5, ours=0.25)), "utf-8")
    page = script.rebuilt("a\n<!-- measured: gateway-speed -->\nold\n<!-- end -->\nb", path)
    assert "| 0.250 |" in page
    assert "(1/" not in page
    assert "not measured" in page
    assert "old" not in page
