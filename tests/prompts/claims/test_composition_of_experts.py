from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crossroads.core.errors import UnavailableError
from crossroads.prompts.claims import composition_of_experts as claim
from crossroads.prompts.embedded import load_embedded
from crossroads.prompts.outcomes import OutcomeTable

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


def test_a_condition_without_its_data_names_the_data_set() -> None:
    met = claim.conditions({**MET, "b_gap_recovered": None})
    assert met == {**dict.fromkeys("abcde", True), "b": "not measured: needs routellm_mmlu_gsm8k"}


def test_the_verdict_follows_the_rules() -> None:
    met: dict[str, bool | str] = dict.fromkeys("abcde", True)
    assert claim.judge(met, [1.0, 0.1]) == "holds in direction"
    assert (
        claim.judge({**met, "d": False, "b": claim.NOT_MEASURED}, [1.0, 0.1])
        == "holds in direction"
    )
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
    assert verdict.measured["conditions"]["b"] == "not measured: needs routellm_mmlu_gsm8k"
    assert "(b) not measured: needs routellm_mmlu_gsm8k" in verdict.data
    assert "replayed" in verdict.data
    assert verdict.measured["a_mapping"]["instances"] == 5


def test_labels_of_few_prompts_are_expanded_without_touching_the_test_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = load_embedded("small")
    part = table.take(np.arange(0, len(table), 12))
    figures, learned = few_labels(part, monkeypatch)
    assert figures.keys() == {"few", "all_labels", "spread", "pseudo"}
    assert all(1 / 14 < figure < figures["all_labels"] for name, figure in figures.items()
               if name != "all_labels")  # fmt: skip
    _, test = part.split_by_hash(0)
    assert part.domain is not None
    moved, domain = part.embeddings["static"].copy(), part.domain.copy()
    moved[test], domain[test] = moved[test[::-1]], np.roll(domain[test], 1)
    changed = dataclasses.replace(part, embeddings={"static": moved}, domain=domain)
    others, same = few_labels(changed, monkeypatch)
    assert others != figures  # the accuracy is of the test prompts,
    assert len(same) == len(learned) == 12  # but nothing that is learned depends on them
    for before, after in zip(learned, same, strict=True):
        np.testing.assert_array_equal(before, after)


def few_labels(
    table: OutcomeTable, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, float], list[np.ndarray]]:
    """The figures, and the prompts and labels of every expansion (2) and every regression (4)."""
    learned: list[np.ndarray] = []

    def watched(learn: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: np.ndarray, label: np.ndarray, *rest: Any, **settings: Any) -> Any:
            learned.extend((x, label))
            return learn(x, label, *rest, **settings)

        return call

    with monkeypatch.context() as patch:
        for name in ("expand_labels", "softmax_regression"):
            patch.setattr(claim, name, watched(getattr(claim, name)))
        return claim.few_labels(table, seed=0, count=3), learned
