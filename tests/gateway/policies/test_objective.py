from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.policies.objective import by_cost, mixture, priced, ranked, values
from crossroads.prompts.decide import (
    EXCLUDED,
    Argmax,
    BudgetRule,
    DecisionRule,
    MaxCost,
    MinQuality,
    Tradeoff,
)

# distinct numbers on a grid: where two values are level, which comes first is another question
grid = st.integers(0, 1000).map(lambda n: n / 1000)
models = st.lists(
    st.tuples(grid, grid), min_size=1, max_size=6, unique_by=(lambda m: m[0], lambda m: m[1])
)
RULES = (Argmax(), Tradeoff(0.7), MaxCost(0.3), MinQuality(0.6))


@given(st.sampled_from(RULES), models, st.sampled_from((0.0, 0.3, 50.0)))
def test_the_best_ranked_model_is_the_rules_choice(
    rule: DecisionRule, pairs: list[tuple[float, float]], price: float
) -> None:
    quality, cost = [q for q, _ in pairs], [c for _, c in pairs]
    rule = priced(rule, price)
    order = ranked(rule, quality, cost)
    assert order[0] == mixture(rule, quality, cost)[0][0]
    assert len(set(order)) == len(order)


@given(models, grid, st.floats(0, 100), st.floats(0, 100))
def test_prices_add_up(
    pairs: list[tuple[float, float]], start: float, one: float, other: float
) -> None:
    assert priced(priced(Tradeoff(start), one), other) == priced(Tradeoff(start + one), other)
    assert priced(Argmax(), 0.0) == Argmax()


@given(models, st.sampled_from(RULES[:3]))
def test_a_higher_price_never_buys_a_dearer_model(
    pairs: list[tuple[float, float]], rule: DecisionRule
) -> None:
    quality, cost = [q for q, _ in pairs], [c for _, c in pairs]
    costs = [
        cost[mixture(priced(rule, price), quality, cost)[0][0]] for price in (0.0, 0.5, 2.0, 100.0)
    ]
    assert costs == sorted(costs, reverse=True)


def test_a_budget_mixes_its_two_prices() -> None:
    rule = BudgetRule(0.5, 0.0, 10.0, 0.25)
    quality, cost = [0.5, 0.9], [0.0, 1.0]
    assert mixture(rule, quality, cost) == [(1, 0.75), (0, 0.25)]
    assert mixture(priced(rule, 5.0), quality, cost) == [(0, 1.0)]
    assert priced(rule, 5.0) == BudgetRule(0.5, 5.0, 15.0, 0.25)


def test_what_a_cap_cannot_afford_is_no_fallback() -> None:
    quality, cost = [0.1, 0.5, 0.9], [0.1, 0.2, 1.0]
    assert ranked(MaxCost(0.3), quality, cost) == [1, 0]
    assert str(priced(MaxCost(0.3), 2.0)) == "max-cost:0.3 at 2 per USD"
    with pytest.raises(AttributeError):
        priced(MaxCost(0.3), 2.0).price = 3.0  # type: ignore[attr-defined]


level = st.sampled_from((EXCLUDED, 0.0, 0.25, 0.5, 0.5 + 1e-12, 1.0))
numbers = st.one_of(level, st.floats(-0.5, 1.5))
prices = st.one_of(st.sampled_from((0.0, 1.0)), st.floats(0, 100))


@given(
    st.one_of(
        st.just(Argmax()),
        st.builds(Tradeoff, prices),
        st.builds(MaxCost, st.floats(0, 1)),
        st.builds(MinQuality, st.floats(0, 1)),
        st.builds(lambda usd, price: priced(MaxCost(usd), price), st.floats(0, 1), prices),
    ),
    st.lists(st.tuples(numbers, level.map(abs)), min_size=1, max_size=6),
)
def test_one_prompt_decided_by_plain_numbers_is_decided_as_in_a_batch(
    rule: DecisionRule, pairs: list[tuple[float, float]]
) -> None:
    quality, cost = [q for q, _ in pairs], [c for _, c in pairs]
    whole = rule.choose(np.array([quality, quality]), np.array(cost))
    assert mixture(rule, quality, cost) == [(int(whole[0]), 1.0)]


@given(
    st.sampled_from((*RULES, priced(MaxCost(0.3), 2.0), BudgetRule(0.5, 0.1, 10.0, 0.25))),
    st.lists(st.tuples(numbers, level.map(abs)), min_size=1, max_size=6),
)
def test_ranks_are_by_value_then_cost_then_place(
    rule: DecisionRule, pairs: list[tuple[float, float]]
) -> None:
    quality, cost = [q for q, _ in pairs], [c for _, c in pairs]
    value = values(rule, quality, cost)
    able = [column for column in range(len(value)) if value[column] > -np.inf]
    expected = sorted(able, key=lambda column: (-value[column], cost[column]))
    assert ranked(rule, quality, cost) == expected
    assert ranked(rule, quality, cost, by_cost(cost)) == expected


def test_a_rule_of_another_package_decides_by_its_own_method() -> None:
    class Last:
        def choose(self, quality_NK: np.ndarray, cost_NK: np.ndarray) -> np.ndarray:
            return np.full(len(quality_NK), quality_NK.shape[1] - 1)

    assert mixture(Last(), [0.9, 0.1], [0.0, 0.0]) == [(1, 1.0)]
