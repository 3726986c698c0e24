"""The figures on the page about speed are those of the committed results."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "moe" / "speed.md"


@pytest.fixture
def script() -> ModuleType:
    path = ROOT / "scripts" / "build_moe_table.py"
    spec = importlib.util.spec_from_file_location("build_moe_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_block_is_that_of_the_committed_results(script: ModuleType) -> None:
    text = PAGE.read_text("utf-8")
    assert {name for _, name, _ in script.BLOCK.findall(text)} == set(script.BLOCKS)
    assert script.rebuilt(text) == text, "run: python scripts/build_moe_table.py"
    plot = (script.RESULTS / script.LAYER).with_suffix(".svg")
    if plot.is_file():
        assert PAGE.with_name(plot.name).read_bytes() == plot.read_bytes()


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["y"].shape == (64, 32)


def body(script: ModuleType, *, ours: float, peer: float, ratio: float) -> dict[str, Any]:
    def case() -> dict[str, Any]:
        methods = {
            script.OURS: {"median_ms": ours, "ratio": ratio},
            script.PEER: {"median_ms": peer},
        }
        return {"methods": methods, "left_out": {}}

    names = [
        f"{s}, {d}, {m}" for s in ("small", "big") for d in script.DTYPES for m in script.MODES
    ]
    return {part: {name: case() for name in names} for part in ("one thread", "two threads")}


def test_a_missed_goal_is_marked(script: ModuleType) -> None:
    table = script.goals(body(script, ours=10.0, peer=20.0, ratio=0.8))
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()}
    assert lines["limit / our layer, one thread, bf16 fwd"].endswith("| 0.74 | 0.80 | 0.80 |")
    missed = "| 0.90 | **0.80** (missed) | **0.80** (missed) |"
    assert lines["limit / our layer, one thread, f32 fwd"].endswith(missed)
    peers = "transformers grouped_mm / our layer, one thread,"
    assert lines[f"{peers} f32 fwd+bwd"].endswith("| 1.08 | 2.00 | 2.00 |")
    assert "**2.00** (missed)" in lines[f"{peers} bf16 fwd"]


def test_goals_of_a_part_that_was_not_measured_are_not_claimed(script: ModuleType) -> None:
    found = body(script, ours=10.0, peer=20.0, ratio=0.8)
    del found["two threads"]
    table = script.goals(found)
    assert "one thread" in table and "two threads" not in table


def test_cases_are_named_shortly(script: ModuleType) -> None:
    case = {"methods": {"ours": {"median_ms": 12.34, "ratio": 0.987}}, "left_out": {}}
    table = script.compared(
        {"big, bfloat16, forward and backward": case, "small, float32, forward": case}
    )
    assert table.splitlines()[0] == "| method | big bf16 fwd+bwd | small f32 fwd |"
    assert table.splitlines()[2] == "| ours | 12.3 (0.99) | 12.3 (0.99) |"


def test_without_a_result_the_page_says_how_to_make_it(script: ModuleType, tmp_path: Path) -> None:
    page = "a\n<!-- measured: routers -->\nold\n<!-- end -->\nb"
    assert "benchmarks/moe/routers.py" in script.rebuilt(page, tmp_path)
    row = {
        "experts_per_token": 2.0,
        "router_ms": 1.0,
        "layer_ms": 40.0,
        "share": 0.025,
        "training_share": 0.031,
    }
    found = {"routers": {"top2": row}, "left_out": {"own": "needs what is not there"}}
    (tmp_path / "moe-routers.json").write_text(json.dumps(found), "utf-8")
    made = script.rebuilt(page, tmp_path)
    assert "| `top2` | 2.0 | 1.00 | 40.0 | 2.5% | 3.1% |" in made
    assert "Left out: own (needs what is not there)." in made


def test_a_newer_run_in_float32_takes_the_place_of_its_cases(
    script: ModuleType, tmp_path: Path
) -> None:
    def run(date: str, ms: float, *dtypes: str) -> dict[str, Any]:
        facts = {"python": "3.11", "cpus": 2, "architecture": "x", "versions": {}}
        cases = {
            f"{dtype}, 1 tokens": {"methods": {"crossroads": {"median_ms": ms}}, "left_out": {}}
            for dtype in dtypes
        }
        return {"date": date, "machine": facts, "compiled_kernels": True, "decode": cases}

    page = "<!-- measured: decode -->\n<!-- end -->\n<!-- measured: about -->\n<!-- end -->"
    older, newer = run("2026-01-01", 9.0, "float32", "bfloat16"), run("2026-02-02", 3.0, "float32")
    (tmp_path / script.LAYER).write_text(json.dumps(older), "utf-8")
    assert "| crossroads | 9.00 | 9.00 |" in script.rebuilt(page, tmp_path)
    (tmp_path / script.FLOAT32).write_text(json.dumps(newer), "utf-8")
    made = script.rebuilt(page, tmp_path)
    assert "| crossroads | 3.00 | 9.00 |" in made
    assert "float32 measured on 2026-02-02" in made
    assert "bfloat16, on another machine, measured on 2026-01-01" in made
