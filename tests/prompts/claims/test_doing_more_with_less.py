"""The verdict follows its written rules, and a small run of the measurement is well formed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crossroads.core.statistics import Summary, summarise
from crossroads.prompts.claims import doing_more_with_less as claim
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.readers import read_outcomes
from crossroads.prompts.router import PromptRouter
from crossroads.prompts.routers import router_class


def gaps(*per_table: tuple[list[float], list[float]]) -> dict[str, dict[str, Summary]]:
    """Gaps of two methods on each table, seed by seed."""
    return {
        f"table {n}": {"similarity-based": summarise(one), "supervised": summarise(other)}
        for n, (one, other) in enumerate(per_table)
    }


CLEAR, VAGUE, LOW = [2.0, 2.1, 2.2], [0.1, 3.0, 1.0], [-1.0, -2.0, -1.5]


@pytest.mark.parametrize(
    ("exact", "found", "verdict"),
    [
        (True, gaps((CLEAR, CLEAR), (CLEAR, CLEAR)), "holds"),
        (True, gaps((CLEAR, CLEAR), (CLEAR, VAGUE)), "holds in direction"),
        (True, gaps((CLEAR, CLEAR), (CLEAR, LOW)), "null"),
        (True, gaps((LOW, LOW), (LOW, LOW)), "fails"),
        (False, gaps((CLEAR, CLEAR)), "fails"),
    ],
)
def test_the_verdict_follows_the_rules(
    exact: bool, found: dict[str, dict[str, Summary]], verdict: str
) -> None:
    assert claim.outcome(exact, found) == verdict


def test_a_sweep_in_predicted_terms_is_monotone() -> None:
    rng = np.random.default_rng(0)
    assert claim.is_monotone(rng.random((300, 4)), np.array([1.0, 2.0, 4.0, 8.0]))
    assert claim.is_monotone(np.full((5, 2), 0.5), np.array([1.0, 2.0]))


def test_a_router_without_a_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cls: type[PromptRouter] = router_class("knn")
    monkeypatch.setattr(cls, "method", "by magic")
    places, unplaced = claim._places()
    assert unplaced == ["knn"]
    assert "knn" not in {at.name for at in places}


@pytest.mark.slow
def test_a_small_run_measures_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(name: str) -> OutcomeTable:
        return read_outcomes(name).take(np.arange(0, 12_000, 8))

    monkeypatch.setattr(claim, "_read", few)
    monkeypatch.setattr(claim, "data_root", lambda: None)
    monkeypatch.setattr(claim, "TABLES", ("mmlu-pro:small",))
    monkeypatch.setattr(claim, "ROUTERS", ("clusters", "ridge"))
    verdict = claim.verify(False)
    json.dumps(verdict.to_dict(), allow_nan=False)
    assert verdict.seeds == (0, 1, 2)
    assert verdict.measured["classified"]
    assert verdict.measured["budget_within_1_percent"]
    assert verdict.measured["frontier_monotone"]
    table = verdict.measured["tables"]["mmlu-pro:small"]
    assert table["num_prompts"] == 1500
    assert table["worst_budget_error"] <= 0.01
    assert table["aiq"].keys() == {
        "oracle",
        "cascade by estimate",
        "cascade by length",
        "routing",
        "random mix",
    }
    assert table["top_cost"].keys() == {"estimate", "length"}
    assert table["aiq"]["oracle"]["mean"] > table["aiq"]["routing"]["mean"]
    assert table["gap_over_mix_points"].keys() == {"similarity-based", "supervised"}


def test_what_the_optional_data_would_add_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CROSSROADS_DATA", str(tmp_path))
    (tmp_path / "mmlu_pro_outcomes").mkdir()
    assert claim.lacking() == "; RouteLLM's table not measured: needs routellm_mmlu_gsm8k"
    (tmp_path / "routellm_mmlu_gsm8k").mkdir()
    assert claim.lacking() == ""
