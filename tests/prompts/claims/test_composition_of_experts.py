from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossroads.core.errors import UnavailableError
from crossroads.prompts.claims import composition_of_experts as claim
from crossroads.prompts.embedded import load_embedded

MET: dict[str, Any] = {
    "a_mapping": {"different": 0, "decreasing": 0, "over_budget": 0},
    "b_gap_recovered": {"composition": [0.65, 0.66], "weak_wrong": [0.6, 0.6]},
    "c_jitter": {
        "best_expert_kappa": [0.01, 0.02],
        "best_expert_kappa_steady": 0.05,
        "category_kappa": 0.6,
    },
    "d_robust": {"known_points": [0.0, 0.1], "mixture_points": [0.1, 0.2]},
    "e_gain_points_29_models": {"gain": [0.1, 0.2]},
    "e_gain_points_small": {"gain": [1.0, 2.0]},
    "e_budget": {"points": [0.0, 1.0]},
}


def test_figures_at_their_levels_meet_every_condition() -> None:
    assert claim.conditions(MET) == dict.fromkeys("abcde", True)


@pytest.mark.parametrize(
    ("letter", "part", "figure", "value"),
    [
        ("a", "a_mapping", "over_budget", 1),
        ("b", "b_gap_recovered", "composition", [0.65, 0.63]),
        ("b", "b_gap_recovered", "weak_wrong", [0.6, 0.64]),
        ("c", "c_jitter", "best_expert_kappa_steady", 0.2),
        ("c", "c_jitter", "category_kappa", 0.2),
        ("d", "d_robust", "known_points", [0.1, -0.01]),
        ("d", "d_robust", "mixture_points", [0.1, 0.0]),
        ("e", "e_gain_points_small", "gain", [2.0, 0.9]),
        ("e", "e_gain_points_29_models", "gain", [0.5, 0.0]),
        ("e", "e_budget", "points", [1.0, -0.1]),
    ],
)
def test_a_figure_past_its_level_breaks_its_own_condition(
    letter: str, part: str, figure: str, value: object
) -> None:
    broken = {**MET, part: {**MET[part], figure: value}}
    assert claim.conditions(broken) == {**dict.fromkeys("abcde", True), letter: False}


def test_the_verdict_follows_the_rules() -> None:
    met: dict[str, bool | None] = dict.fromkeys("abcde", True)
    assert claim.judge(met, [1.0, 0.1]) == "holds in direction"
    assert claim.judge({**met, "d": False, "b": None}, [1.0, 0.1]) == "holds in direction"
    assert claim.judge({**met, "c": False}, [1.0, 0.1]) == "null"
    assert claim.judge(met, [1.0, -0.1]) == "null"
    assert claim.judge(met, [-1.0, -0.1]) == "fails"
    assert claim.judge({**met, "a": False}, [1.0, 0.1]) == "fails"


@pytest.mark.slow
def test_the_claim_is_measured_and_says_on_what_without_the_optional_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = load_embedded("small")
    part = table.take(np.random.default_rng(0).permutation(len(table))[:700])
    monkeypatch.setattr(claim, "SEEDS", (0,))
    monkeypatch.setattr(claim, "INSTANCES", 5)
    monkeypatch.setattr(claim, "BUDGETS", ("4B", "16B"))
    monkeypatch.setattr(claim, "load_embedded", lambda subset: part)

    def absent(name: str) -> None:
        raise UnavailableError(f"data set {name!r} is not on this machine")

    monkeypatch.setattr(claim, "data_folder", absent)
    verdict = claim.verify(False)
    assert verdict.measured["conditions"]["a"] is True
    assert verdict.measured["conditions"]["b"] is None
    assert "not measured: MMLU of RouteLLM is not here" in verdict.data
    assert "replayed" in verdict.data
    assert verdict.measured["a_mapping"]["instances"] == 5


def test_labels_of_few_prompts_are_expanded_without_touching_the_test_prompts() -> None:
    table = load_embedded("small")
    part = table.take(np.arange(0, len(table), 12))
    figures = claim.few_labels(part, seed=0, count=3)
    assert figures.keys() == {"few", "all_labels", "spread", "pseudo"}
    assert all(1 / 14 < figure < figures["all_labels"] for name, figure in figures.items()
               if name != "all_labels")  # fmt: skip
