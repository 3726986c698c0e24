from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.routerarena.stored import Archived, Figures, read_stored

FIGURES = {
    "router_name": "toy", "models": ["small"], "submitted": "2026-01-01", "digest": "ab",
    "arena_score": 50, "accuracy": 50.0, "cost_per_1k_usd": 0.1, "num_rows": 6, "num_failed": 0,
    "optimality": {"all_solvable": {"selection": None, "num_rows": 1}}, "robustness": None,
    "latency": None, "breakdown": {"domain": {"a": {"accuracy": 0.5, "num_rows": 6}}}, "notes": [],
    "crossroads": "0.1",
}  # fmt: skip


def test_what_is_stored_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(FIGURES))
    assert read_stored(path, Figures, remedy="x") == FIGURES
    path.write_text('{"digest": "ab", "text": "\\ud83d"}')  # half a character of an answer
    assert read_stored(path, Archived, remedy="x")["text"] == "\ud83d"


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[]", "3", "\xff", "[" * 100_000]
    + [
        json.dumps({**FIGURES, **wrong})
        for wrong in (
            {"arena_score": "high"},
            {"arena_score": float("nan")},
            {"notes": None},
            {"breakdown": {"domain": 3}},
            {"optimality": {"all_solvable": 1}},
        )
    ],
)
def test_damage_is_one_line_with_file_and_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "toy.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"toy\.json: damaged \(.*; mend it") as caught:
        read_stored(path, Figures, remedy="mend it")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_told_as_well(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: damaged \(.*No such file"):
        read_stored(tmp_path / "none.json", Archived, remedy="mend it")
