"""The project's own prompts and the table measured on them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossroads.prompts.collect import PromptItem, read_prompts
from crossroads.prompts.experts import calculator, units
from crossroads.prompts.readers import read_outcomes
from crossroads.prompts.scorers import parse_scorer

ROOT = Path(__file__).parents[3]
DATA = ROOT / "src" / "crossroads" / "prompts" / "data"
ITEMS = read_prompts(DATA / "local_prompts.jsonl")
TOOLS = {"arithmetic": calculator, "units": units}


def test_the_script_writes_the_committed_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("build_local_prompts")
    assert script.build() == (DATA / "local_prompts.jsonl").read_text("utf-8")


def of_domain(domain: str) -> list[PromptItem]:
    return [item for item in ITEMS if item.domain == domain]


@pytest.mark.parametrize("domain", TOOLS)
def test_a_tool_is_right_on_all_of_its_own_domain(domain: str) -> None:
    items = of_domain(domain)
    assert len(items) > 100
    for item in items:
        found = TOOLS[domain].answer(item.prompt)
        assert found is not None, item.prompt
        assert parse_scorer(item.scorer)(found, item.references) == 1, item.prompt


@pytest.mark.parametrize("domain", TOOLS)
def test_a_tool_declines_everything_else_and_is_not_right_by_chance(domain: str) -> None:
    others = [item for item in ITEMS if item.domain != domain]
    assert len(others) > 250
    for item in others:
        assert TOOLS[domain].answer(item.prompt) is None, item.prompt
        assert parse_scorer(item.scorer)(TOOLS[domain].REFUSAL, item.references) == 0, item.prompt


def test_every_reference_is_right_by_its_own_scorer() -> None:
    for item in ITEMS:
        for reference in item.references:
            assert parse_scorer(item.scorer)(reference, item.references) == 1, item.prompt


def test_the_table_covers_every_prompt_and_model() -> None:
    table = read_outcomes("local")
    assert table.models == ("smollm2", "calculator", "units")
    assert list(table.prompt_ids) == [item.prompt_id for item in ITEMS]
    assert table.texts is not None
    assert list(table.texts) == [item.prompt for item in ITEMS]
    assert table.complete.all()
    assert table.cost is not None
    assert (table.cost[:, 0] > 0).all()
    assert (table.cost[:, 1:] == 0).all()


def test_the_right_choice_is_worth_far_more_than_any_single_expert() -> None:
    table = read_outcomes("local")
    best_single = table.score.mean(axis=0).max()
    assert best_single < 0.4
    assert table.score.max(axis=1).mean() > 0.8


def test_the_provenance_agrees_with_the_table() -> None:
    table = read_outcomes("local")
    facts: dict[str, Any] = json.loads((DATA / "local_outcomes.json").read_text("utf-8"))
    means = dict(zip(table.models, table.score.mean(axis=0), strict=True))
    assert facts["num_prompts"] == len(table)
    assert facts["mean_score"] == pytest.approx({k: float(v) for k, v in means.items()}, abs=1e-4)
    assert np.isfinite(table.score).all()
