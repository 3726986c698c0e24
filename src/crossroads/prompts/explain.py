"""Why a rule chose a model: how clear the choice was, and one sentence to say so.

The lead is what ``crossroads.core.decision.Decision`` calls confidence: the first choice's
advantage over the runner-up in the rule's own value, clipped to [0, 1]. For ``min-quality``, whose
value is a price, it is the estimated quality in excess of the floor.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from crossroads.prompts.decide import (
    Argmax,
    BudgetRule,
    DecisionRule,
    MaxCost,
    MinQuality,
    Tradeoff,
)

Float = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

_LEVEL = 0.005  # leads below it vanish in two digits


def leads(rule: DecisionRule, quality_NK: Float, cost_K: Float, choice_N: Ints) -> Float:
    """Return the lead of each choice, shape (N,), in [0, 1]; 1 where there is one model only."""
    rows = np.arange(len(choice_N))
    if isinstance(rule, MinQuality):
        excess = quality_NK[rows, choice_N] - rule.floor
        return np.asarray(np.clip(excess, 0.0, 1.0))
    value = _values(rule, quality_NK, cost_K)
    chosen = value[rows, choice_N]
    value[rows, choice_N] = -np.inf
    return np.asarray(np.clip(chosen - value.max(axis=1), 0.0, 1.0))


def reason(
    rule: DecisionRule, names: tuple[str, ...], quality_K: Float, cost_K: Float, choice: int
) -> str:
    """Return one sentence that says why ``names[choice]`` was chosen."""
    # Estimates are linear and can leave [0, 1] a little; what a person reads cannot.
    shown_K = np.clip(quality_K, 0.0, 1.0)
    name, quality = names[choice], float(shown_K[choice])
    if len(names) == 1:
        return f"{name} is the only model"
    if isinstance(rule, MaxCost):
        return _reason_max_cost(rule, name, quality_K, cost_K, choice)
    if isinstance(rule, MinQuality):
        return _reason_min_quality(rule, name, quality_K, cost_K, choice)
    value = _values(rule, quality_K[None], cost_K)[0]
    others = np.where(np.arange(len(names)) == choice, -np.inf, value)
    second = int(others.argmax())
    shown = _values(rule, shown_K[None], cost_K)[0]
    distance = _distance(float(shown[choice] - shown[second]), names[second])
    if isinstance(rule, Tradeoff):
        return (
            f"{name} has the best estimated quality, {quality:.2f}, less {rule.price:g} times its "
            f"cost, {cost_K[choice]:.2g} USD a call; {distance}"
        )
    if isinstance(rule, Argmax) or is_slack(rule):
        budget = ""
        if is_slack(rule):
            budget = f"; the budget of {rule.usd:g} USD a call does not bind"
        return f"{name} has the highest estimated quality, {quality:.2f}, {distance}{budget}"
    aim = (
        f"to spend {rule.usd:g} USD a call on average"
        if isinstance(rule, BudgetRule)
        else f"by {rule}"
    )
    return f"{name} was chosen {aim}; its estimated quality is {quality:.2f}"


def is_slack(rule: DecisionRule) -> TypeGuard[BudgetRule]:
    """Whether this is a budget so large that every prompt gets the model of highest quality."""
    return isinstance(rule, BudgetRule) and rule.high_price == 0


def _distance(lead: float, runner_up: str) -> str:
    if lead < _LEVEL:
        return f"level with {runner_up}"
    # A trade-off's value is less a price, and has no lower end.
    return f"{lead:.2f} above {runner_up}" if lead <= 1 else f"more than 1 above {runner_up}"


def _values(rule: DecisionRule, quality_NK: Float, cost_K: Float) -> Float:
    """Return what the rule maximises, shape (N, K), -inf where it may not choose; a fresh array."""
    if isinstance(rule, Tradeoff):
        return np.asarray(quality_NK - rule.price * cost_K)
    if isinstance(rule, MaxCost):
        return np.where(rule.affordable(quality_NK, cost_K), quality_NK, -np.inf)
    return np.array(quality_NK)


def _reason_max_cost(rule: MaxCost, name: str, quality_K: Float, cost_K: Float, choice: int) -> str:
    quality = float(np.clip(quality_K[choice], 0.0, 1.0))
    if cost_K[choice] > rule.usd:
        return (
            f"no model costs at most {rule.usd:g} USD a call; "
            f"{name} is the cheapest, {cost_K[choice]:.2g} USD"
        )
    count = int(rule.affordable(quality_K[None], cost_K).sum())
    if count == 1:
        return (
            f"{name} is the only model costing at most {rule.usd:g} USD a call; "
            f"its estimated quality is {quality:.2f}"
        )
    return (
        f"{name} has the highest estimated quality, {quality:.2f}, of the {count} models costing "
        f"at most {rule.usd:g} USD a call"
    )


def _reason_min_quality(
    rule: MinQuality, name: str, quality_K: Float, cost_K: Float, choice: int
) -> str:
    quality = float(np.clip(quality_K[choice], 0.0, 1.0))
    if quality_K[choice] < rule.floor:
        return (
            f"no model is estimated at {rule.floor:g} or better; {name} comes closest, "
            f"{quality:.2f}"
        )
    count = int((quality_K >= rule.floor).sum())
    if count == 1:
        return f"{name} is the only model estimated at {rule.floor:g} or better, {quality:.2f}"
    return (
        f"{name} is the cheapest, {cost_K[choice]:.2g} USD a call, of the {count} models estimated "
        f"at {rule.floor:g} or better, itself {quality:.2f}"
    )
