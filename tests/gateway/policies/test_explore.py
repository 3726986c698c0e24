from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from crossroads.gateway.policies.explore import Explorer
from crossroads.gateway.policies.objective import mixture, priced
from crossroads.gateway.policies.settings import Exploration
from crossroads.prompts.decide import (
    Argmax,
    BudgetRule,
    DecisionRule,
    MaxCost,
    MinQuality,
    Tradeoff,
)
from tests.gateway.policies.conftest import LEARNED, call, choose, compiled, pool

RULES = (
    Argmax(),
    Tradeoff(2.0),
    MaxCost(0.5),
    MinQuality(0.4),
    BudgetRule(0.3, 0.1, 3.0, 0.25),
)
SETTINGS = (
    {"epsilon": 0.2, "floor": 0.5},
    {"epsilon": 0.2, "margin": 0.1},
    {"thompson": 0.2, "margin": 0.3},
    {"thompson": 0.05, "floor": 0.9},
)
unit = st.floats(0, 1)


def probabilities(
    settings: dict[str, Any], rule: DecisionRule, quality: list[float], cost: list[float]
) -> list[float]:
    explorer = Explorer(Exploration(**settings), len(quality), seed=1)
    sides = mixture(rule, quality, cost)
    return explorer.probabilities(rule, quality, cost, sides, range(len(quality)))


@given(
    st.sampled_from(SETTINGS),
    st.sampled_from(RULES),
    st.lists(st.tuples(unit, unit), min_size=1, max_size=6),
)
def test_probabilities_sum_to_one_and_the_rules_own_choice_is_among_them(
    settings: dict[str, Any], rule: DecisionRule, models: list[tuple[float, float]]
) -> None:
    quality, cost = [q for q, _ in models], [c for _, c in models]
    found = probabilities(settings, rule, quality, cost)
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
    sides = mixture(rule, quality, cost)
    if "epsilon" in settings:
        assert all(found[column] > 0 for column, share in sides if share > 0)


@given(st.sampled_from(SETTINGS), st.lists(st.tuples(unit, unit), min_size=2, max_size=6))
def test_nothing_below_the_floor_is_explored(
    settings: dict[str, Any], models: list[tuple[float, float]]
) -> None:
    quality, cost = [q for q, _ in models], [c for _, c in models]
    found = probabilities(settings, Argmax(), quality, cost)
    best = mixture(Argmax(), quality, cost)[0][0]
    floor = settings.get("floor", max(quality) - settings.get("margin", 0))
    for place, probability in enumerate(found):
        if quality[place] < floor and place != best:
            assert probability == 0


def test_epsilon_is_shared_by_what_is_above_the_floor() -> None:
    found = probabilities({"epsilon": 0.3, "floor": 0.5}, Argmax(), [0.9, 0.6, 0.1], [1, 1, 1])
    assert found == pytest.approx([0.85, 0.15, 0.0])


def test_a_budgets_own_chance_is_part_of_the_probabilities() -> None:
    rule = BudgetRule(0.3, 0.0, 10.0, 0.25)  # the dear model, or with 1/4 the cheap one
    found = probabilities({"epsilon": 0.2, "floor": 0.0}, rule, [0.5, 0.9], [0.0, 1.0])
    assert found == pytest.approx([0.1 + 0.8 * 0.25, 0.1 + 0.8 * 0.75])


@given(
    st.sampled_from(SETTINGS),
    st.floats(0.0, 1.0),
    st.floats(0.0, 10.0),
    st.lists(st.tuples(unit, unit), min_size=1, max_size=6),
)
def test_a_cap_on_the_cost_of_a_call_holds_for_what_is_explored(
    settings: dict[str, Any], usd: float, price: float, models: list[tuple[float, float]]
) -> None:
    quality, cost = [q for q, _ in models], [c for _, c in models]
    most = max(usd, min(cost))  # where nothing is within the cap, the cheapest
    for rule in (MaxCost(usd), priced(MaxCost(usd), price)):
        for probability, each in zip(
            probabilities(settings, rule, quality, cost), cost, strict=True
        ):
            assert probability == 0 or each <= most


def test_a_budgets_other_side_is_not_explored() -> None:
    fields = {
        "objective": {"rule": "budget:0.01:0:10:0.6"},
        "explore": {"epsilon": 0.2, "floor": 0},
    }
    policies = compiled({"auto": {**LEARNED, **fields}})
    found = choose(policies, *(call(text="hard", number=n) for n in range(400)))
    explored = {choice.model for choice in found if choice.is_explored}
    assert explored == {"small"}
    assert {choice.model for choice in found} == {"small", "medium", "large"}
    for choice in found:
        assert choice.is_explored == ("drawn to explore" in choice.reason)


def test_thompson_prefers_the_better_model_by_its_lead() -> None:
    settings = {"thompson": 0.1, "floor": 0.0}
    close = probabilities(settings, Argmax(), [0.50, 0.51], [1, 1])
    far = probabilities(settings, Argmax(), [0.30, 0.70], [1, 1])
    assert 0.3 < close[0] < 0.6
    assert far[0] < 0.02


@pytest.mark.parametrize(
    "explore", [{"epsilon": 0.4, "margin": 1.0}, {"thompson": 0.3, "margin": 1.0}]
)
def test_models_are_chosen_as_often_as_recorded(explore: dict[str, Any]) -> None:
    policies = compiled({"auto": {**LEARNED, "explore": explore, "seed": 11}})
    found = choose(policies, *(call(text="hard", number=n) for n in range(3000)))
    recorded = found[0].probabilities
    assert sum(recorded.values()) == pytest.approx(1)
    counts = Counter(choice.model for choice in found)
    models = [model for model, probability in recorded.items() if probability > 0]
    assert set(counts) <= set(models)
    expected = [3000 * recorded[model] for model in models]
    assert chisquare([counts[model] for model in models], expected).pvalue > 0.001
    for choice in found:
        assert choice.probabilities == recorded
        assert choice.propensity == recorded[choice.model]
        assert choice.is_explored == (choice.model != "large")
    assert any("drawn to explore" in choice.reason for choice in found)


def test_a_replay_draws_the_same_and_another_seed_does_not() -> None:
    explore = {"epsilon": 0.5, "floor": 0.0}
    calls = [call(text="hard", number=n) for n in range(200)]

    def chosen(seed: int) -> list[str]:
        policies = compiled({"auto": {**LEARNED, "explore": explore, "seed": seed}})
        return [choice.model for choice in choose(policies, *calls)]

    assert chosen(1) == chosen(1) != chosen(2)


def test_exploration_keeps_to_the_eligible() -> None:
    policies = compiled(
        {"auto": {**LEARNED, "explore": {"epsilon": 0.9, "floor": 0.0}}},
        models=pool(medium={"tools": False}),
    )
    found = choose(policies, *(call(text="hard", tools=[{}], number=n) for n in range(100)))
    assert {choice.model for choice in found} == {"small", "large"}
    assert all(sum(c.probabilities.values()) == pytest.approx(1) for c in found)
