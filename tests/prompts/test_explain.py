from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.decide import (
    EXCLUDED,
    Argmax,
    BudgetRule,
    DecisionRule,
    MaxCost,
    MinQuality,
    Tradeoff,
)
from crossroads.prompts.explain import affordable, lead, reason

NAMES = ("cheap", "middle", "dear")
QUALITY = [0.4, 0.7, 0.75]
COST = [0.0001, 0.001, 0.01]

CASES: list[tuple[DecisionRule, str, float, str]] = [
    (Argmax(), "dear", 0.05, "dear has the highest estimated quality, 0.75, 0.05 above middle"),
    (
        Tradeoff(10.0),
        "middle",
        0.04,
        "middle has the best estimated quality, 0.70, less 10 times its cost, 0.001 USD a call; "
        "0.04 above dear",
    ),
    (
        MaxCost(0.001),
        "middle",
        0.3,
        "middle has the highest estimated quality, 0.70, of the 2 models costing at most 0.001 USD "
        "a call",
    ),
    (
        MaxCost(0.0005),
        "cheap",
        1.0,
        "cheap is the only model costing at most 0.0005 USD a call; its estimated quality is 0.40",
    ),
    (
        MaxCost(0.0),
        "cheap",
        1.0,
        "no model costs at most 0 USD a call; cheap is the cheapest, 0.0001 USD",
    ),
    (
        MinQuality(0.6),
        "middle",
        0.1,
        "middle is the cheapest, 0.001 USD a call, of the 2 models estimated at 0.6 or better, "
        "itself 0.70",
    ),
    (MinQuality(0.72), "dear", 0.03, "dear is the only model estimated at 0.72 or better, 0.75"),
    (
        MinQuality(0.9),
        "dear",
        0.0,
        "no model is estimated at 0.9 or better; dear comes closest, 0.75",
    ),
]


@pytest.mark.parametrize(("rule", "chosen", "ahead", "text"), CASES, ids=lambda v: str(v)[:12])
def test_choice_lead_and_reason(rule: DecisionRule, chosen: str, ahead: float, text: str) -> None:
    choice = int(rule.choose(np.array([QUALITY]), np.array(COST))[0])
    assert NAMES[choice] == chosen
    assert lead(rule, QUALITY, COST, choice) == pytest.approx(ahead, abs=1e-6)
    assert reason(rule, NAMES, QUALITY, COST, choice) == text


def test_a_tie_is_called_level() -> None:
    assert reason(Argmax(), ("a", "b"), [0.5, 0.5], [0, 0], 0).endswith("0.50, level with b")
    assert lead(Argmax(), [0.5, 0.5], [0, 0], 0) == 0


def test_estimates_outside_the_unit_interval_are_read_clipped_and_so_is_the_lead() -> None:
    names, quality, cost = ("a", "b"), [1.05, -0.1], [0.01, 20.0]
    assert reason(Argmax(), names, quality, cost, 0).endswith("quality, 1.00, 1.00 above b")
    assert reason(Argmax(), names, [1.2, 1.1], cost, 0).endswith("1.00, level with b")
    assert reason(Tradeoff(1.0), names, quality, cost, 0).endswith("more than 1 above b")
    assert reason(MinQuality(0.9), names, quality, cost, 0) == (
        "a is the only model estimated at 0.9 or better, 1.00"
    )
    assert reason(MinQuality(0.9), names, [0.05, -1.1], cost, 0).endswith("closest, 0.05")
    assert reason(MinQuality(0.9), names, [-0.05, -1.2], cost, 0).endswith("closest, 0.00")


def test_the_only_model_needs_no_comparison() -> None:
    assert lead(Argmax(), [0.2], [0.0], 0) == 1.0
    assert reason(Argmax(), ("a",), [0.2], [0.0], 0) == "a is the only model"


def test_a_rule_of_another_package_is_named() -> None:
    class Coin:
        def choose(self, quality_NK: np.ndarray, cost_NK: np.ndarray) -> np.ndarray:
            return np.zeros(len(quality_NK), dtype=np.int64)

        def __str__(self) -> str:
            return "coin"

    assert reason(Coin(), NAMES, QUALITY, COST, 0) == (
        "cheap was chosen by coin; its estimated quality is 0.40"
    )


RULES = st.one_of(
    st.just(Argmax()),
    st.builds(Tradeoff, st.floats(0, 100)),
    st.builds(MaxCost, st.floats(0, 1)),
    st.builds(MinQuality, st.floats(0, 1)),
)


@given(RULES, st.integers(1, 5), st.integers(0, 2**32))
def test_every_choice_has_a_lead_in_the_unit_interval_and_one_sentence(
    rule: DecisionRule, num_models: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    quality, cost = rng.random((4, num_models)), rng.random(num_models)
    names = tuple(f"model-{k}" for k in range(num_models))
    choice = rule.choose(quality, cost)
    for row, column in zip(quality.tolist(), choice.tolist(), strict=True):
        kept = [*row]
        assert 0 <= lead(rule, row, cost.tolist(), column) <= 1
        text = reason(rule, names, row, cost.tolist(), column)
        assert names[column] in text
        assert "\n" not in text
        assert row == kept


def test_a_budget_is_given_as_the_aim() -> None:
    rule = BudgetRule(0.002, 1.0, 2.0, 0.5)
    said = reason(rule, ("a", "b"), [0.25, 0.5], [1e-3, 2e-3], 0)
    assert said == (
        "a was chosen to spend 0.002 USD a call on average; its estimated quality is 0.25"
    )
    assert lead(rule, [0.25, 0.5], [1e-3, 2e-3], 0) == 0.0


def test_a_budget_that_does_not_bind_is_no_aim() -> None:
    said = reason(BudgetRule(100.0, 0.0, 0.0, 0.0), NAMES, QUALITY, COST, 2)
    assert said == (
        "dear has the highest estimated quality, 0.75, 0.05 above middle; the budget of 100 USD a "
        "call does not bind"
    )


@given(
    st.floats(0, 1),
    st.lists(
        st.tuples(st.sampled_from((EXCLUDED, 0.2, 0.9)), st.floats(0, 1)), min_size=1, max_size=5
    ),
)
def test_what_a_cap_leaves_is_what_the_rule_leaves_in_a_batch(
    usd: float, models: list[tuple[float, float]]
) -> None:
    quality, cost = [q for q, _ in models], [c for _, c in models]
    whole = MaxCost(usd).affordable(np.array([quality]), np.array(cost))
    assert affordable(MaxCost(usd), quality, cost) == whole[0].tolist()
