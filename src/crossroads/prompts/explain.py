"""Why a rule chose a model: how clear the choice was, and one sentence to say so.

The lead is what ``crossroads.core.decision.Decision`` calls confidence: the first choice's
advantage over the runner-up in the rule's own value, clipped to [0, 1]. For ``min-quality``, whose
value is a price, it is the estimated quality in excess of the floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

from crossroads.prompts.decide import (
    EXCLUDED,
    Argmax,
    BudgetRule,
    DecisionRule,
    MaxCost,
    MinQuality,
    Tradeoff,
)

Numbers = Sequence[float]  # K of them: a handful is read faster from a list than from an array

_BY_VALUE = (Argmax, Tradeoff)
_LEVEL = 0.005  # leads below it vanish in two digits


def lead(rule: DecisionRule, quality_K: Numbers, cost_K: Numbers, choice: int) -> float:
    """Return the lead of a choice in [0, 1]; 1 where there is one model only."""
    if isinstance(rule, MinQuality):
        return _clipped(quality_K[choice] - rule.floor)
    value_K = _values(rule, quality_K, cost_K)
    if len(value_K) == 1:
        return 1.0
    return _clipped(value_K[choice] - value_K[_runner_up(value_K, choice)])


def reason(
    rule: DecisionRule, names: tuple[str, ...], quality_K: Numbers, cost_K: Numbers, choice: int
) -> str:
    """Return one sentence that says why ``names[choice]`` was chosen."""
    name = names[choice]
    if len(names) == 1:
        return f"{name} is the only model"
    if isinstance(rule, MaxCost):
        return _reason_max_cost(rule, name, quality_K, cost_K, choice)
    if isinstance(rule, MinQuality):
        return _reason_min_quality(rule, name, quality_K, cost_K, choice)
    if isinstance(rule, _BY_VALUE) or is_slack(rule):
        return _reason_best(rule, names, quality_K, cost_K, choice)
    aim = f"by {rule}"
    if isinstance(rule, BudgetRule):
        aim = f"to spend {rule.usd:g} USD a call on average"
    return f"{name} was chosen {aim}; its estimated quality is {_clipped(quality_K[choice]):.2f}"


def affordable(rule: MaxCost, quality_K: Numbers, cost_K: Numbers) -> list[bool]:
    """Return which models a cap leaves, as ``MaxCost.affordable`` does for a whole batch."""
    is_out = [quality <= EXCLUDED for quality in quality_K]
    if any(is_out) and not all(is_out):
        cost_K = [math.inf if out else usd for out, usd in zip(is_out, cost_K, strict=True)]
    most = max(rule.usd, min(cost_K))
    return [usd <= most for usd in cost_K]


def is_slack(rule: DecisionRule) -> TypeGuard[BudgetRule]:
    """Whether this is a budget so large that every prompt gets the model of highest quality."""
    return isinstance(rule, BudgetRule) and rule.high_price == 0


def _clipped(number: float) -> float:
    return min(max(number, 0.0), 1.0)


def _distance(ahead: float, runner_up: str) -> str:
    if ahead < _LEVEL:
        return f"level with {runner_up}"
    # A trade-off's value is less a price, and has no lower end.
    return f"{ahead:.2f} above {runner_up}" if ahead <= 1 else f"more than 1 above {runner_up}"


def _values(rule: DecisionRule, quality_K: Numbers, cost_K: Numbers) -> Numbers:
    """Return what the rule maximises, -inf where it may not choose."""
    if isinstance(rule, Tradeoff):
        price = rule.price
        return [quality - price * usd for quality, usd in zip(quality_K, cost_K, strict=True)]
    if isinstance(rule, MaxCost):
        can = affordable(rule, quality_K, cost_K)
        return [q if is_open else -math.inf for q, is_open in zip(quality_K, can, strict=True)]
    return quality_K


def _runner_up(value_K: Numbers, choice: int) -> int:
    """Return the best of the others, the first where several are; there is another one."""
    others = [*value_K]
    others[choice] = -math.inf
    second = others.index(max(others))
    return second if second != choice else int(choice == 0)  # all others may be -inf


def _reason_best(
    rule: Argmax | Tradeoff | BudgetRule,
    names: tuple[str, ...],
    quality_K: Numbers,
    cost_K: Numbers,
    choice: int,
) -> str:
    name, second = names[choice], _runner_up(_values(rule, quality_K, cost_K), choice)
    # Estimates are linear and can leave [0, 1] a little; what a person reads cannot.
    quality, other = _clipped(quality_K[choice]), _clipped(quality_K[second])
    if isinstance(rule, Tradeoff):
        ahead = (quality - rule.price * cost_K[choice]) - (other - rule.price * cost_K[second])
        return (
            f"{name} has the best estimated quality, {quality:.2f}, less {rule.price:g} times its "
            f"cost, {cost_K[choice]:.2g} USD a call; {_distance(ahead, names[second])}"
        )
    budget = ""
    if isinstance(rule, BudgetRule):
        budget = f"; the budget of {rule.usd:g} USD a call does not bind"
    distance = _distance(quality - other, names[second])
    return f"{name} has the highest estimated quality, {quality:.2f}, {distance}{budget}"


def _reason_max_cost(
    rule: MaxCost, name: str, quality_K: Numbers, cost_K: Numbers, choice: int
) -> str:
    quality = _clipped(quality_K[choice])
    if cost_K[choice] > rule.usd:
        return (
            f"no model costs at most {rule.usd:g} USD a call; "
            f"{name} is the cheapest, {cost_K[choice]:.2g} USD"
        )
    count = sum(affordable(rule, quality_K, cost_K))
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
    rule: MinQuality, name: str, quality_K: Numbers, cost_K: Numbers, choice: int
) -> str:
    quality = _clipped(quality_K[choice])
    if quality_K[choice] < rule.floor:
        return (
            f"no model is estimated at {rule.floor:g} or better; {name} comes closest, "
            f"{quality:.2f}"
        )
    count = sum(known >= rule.floor for known in quality_K)
    if count == 1:
        return f"{name} is the only model estimated at {rule.floor:g} or better, {quality:.2f}"
    return (
        f"{name} is the cheapest, {cost_K[choice]:.2g} USD a call, of the {count} models estimated "
        f"at {rule.floor:g} or better, itself {quality:.2f}"
    )
