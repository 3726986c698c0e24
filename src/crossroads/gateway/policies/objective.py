"""From estimated quality to a choice among the models that may answer.

Shapes: K models of the router, E <= K eligible ones. A cost price p (quality per USD) is what a
paced budget asks for on top of the policy's own rule: ``argmax quality - (lambda + p) * cost``.

One prompt at a time and a handful of models: plain numbers take a tenth of the time that arrays of
them would. The choices are those of the rules themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.decision import Decision
from crossroads.prompts.decide import (
    Argmax,
    BudgetRule,
    DecisionRule,
    MaxCost,
    MinQuality,
    Tradeoff,
    parse_rule,
)
from crossroads.prompts.explain import Numbers, affordable
from crossroads.prompts.fitted import FittedRouter

Float = npt.NDArray[np.floating[Any]]
_PROBE = "hello"  # any text: what is asked is whether the rule can decide


def resolve_rule(fitted: FittedRouter, text: str | None) -> DecisionRule:
    """Return the rule, a budget calibrated by the router's spend curve.

    Raises UsageError for an unknown rule, and for one that weighs costs where they are unknown;
    InputError for a budget below the cheapest model.
    """
    decided: Decision = fitted.decide([_PROBE], rule=text)[0]
    return parse_rule(decided.rule)


def priced(rule: DecisionRule, cost_price: float) -> DecisionRule:
    """Return the rule with a further price on cost."""
    if cost_price <= 0:
        return rule
    if isinstance(rule, Argmax):
        return Tradeoff(cost_price)
    if isinstance(rule, Tradeoff):
        return Tradeoff(rule.price + cost_price)
    if isinstance(rule, BudgetRule):
        return BudgetRule(
            rule.usd, rule.low_price + cost_price, rule.high_price + cost_price, rule.share
        )
    if isinstance(rule, MaxCost):
        return PricedMaxCost(rule, cost_price)
    return rule  # min-quality takes the cheapest above its floor already


@dataclass(frozen=True)
class PricedMaxCost:
    """argmax of quality - price * cost among the models that ``rule`` can afford."""

    rule: MaxCost
    price: float

    def choose(self, quality_NK: Float, cost_NK: Float) -> npt.NDArray[np.int64]:
        cost = np.broadcast_to(cost_NK, quality_NK.shape)
        can = self.rule.affordable(quality_NK, cost)
        value = np.where(can, quality_NK - self.price * cost, -np.inf)
        return Tradeoff(0.0).choose(value, cost)

    def __str__(self) -> str:
        return f"{self.rule} at {self.price:g} per USD"


_BY_VALUE = (Argmax, Tradeoff, MaxCost, PricedMaxCost)


def mixture(rule: DecisionRule, quality_E: Numbers, cost_E: Numbers) -> list[tuple[int, float]]:
    """Return the columns a rule may choose with their probabilities, most thrifty last."""
    if not isinstance(rule, BudgetRule):
        return [(_chosen(rule, quality_E, cost_E), 1.0)]
    low = _best(_net(quality_E, cost_E, rule.low_price), cost_E)
    high = _best(_net(quality_E, cost_E, rule.high_price), cost_E)
    if low == high:
        return [(low, 1.0)]
    return [(low, 1.0 - rule.share), (high, rule.share)]


def by_cost(cost_E: Numbers) -> list[int]:
    """Return the columns from cheap to dear, those of one cost in their own order."""
    return sorted(range(len(cost_E)), key=cost_E.__getitem__)


def ranked(
    rule: DecisionRule, quality_E: Numbers, cost_E: Numbers, thrifty: Sequence[int] | None = None
) -> list[int]:
    """Return the columns best first by the rule's value, without those it may not choose.

    ``thrifty`` is ``by_cost(cost_E)``, for who has it already.
    """
    value = values(rule, quality_E, cost_E)
    # Sorting keeps the order of what is level: the cheaper, then the earlier.
    order = by_cost(cost_E) if thrifty is None else thrifty
    found = sorted(order, key=value.__getitem__, reverse=True)
    while found and value[found[-1]] == -math.inf:
        found.pop()
    return found


def values(rule: DecisionRule, quality_E: Numbers, cost_E: Numbers) -> Numbers:
    """Return what the rule maximises for each of E models; -inf where it may not choose."""
    if isinstance(rule, Tradeoff):
        return _net(quality_E, cost_E, rule.price)
    if isinstance(rule, MaxCost):
        return _capped(quality_E, affordable(rule, quality_E, cost_E))
    if isinstance(rule, PricedMaxCost):
        net = _net(quality_E, cost_E, rule.price)
        return _capped(net, affordable(rule.rule, quality_E, cost_E))
    if isinstance(rule, MinQuality):
        most = max(*cost_E, 1e-300)
        return [  # those below the floor come last, best first
            1.0 - usd / most if quality >= rule.floor else quality - 10.0
            for quality, usd in zip(quality_E, cost_E, strict=True)
        ]
    if isinstance(rule, BudgetRule):
        return _net(quality_E, cost_E, rule.low_price)
    return quality_E


def _chosen(rule: DecisionRule, quality_E: Numbers, cost_E: Numbers) -> int:
    """Return what ``rule.choose`` would for this one prompt."""
    if isinstance(rule, MinQuality):
        floor = min(rule.floor, max(quality_E))
        dearness = [
            -usd if quality >= floor else -math.inf
            for quality, usd in zip(quality_E, cost_E, strict=True)
        ]
        return _best(dearness, [-quality for quality in quality_E])
    if isinstance(rule, _BY_VALUE):
        return _best(values(rule, quality_E, cost_E), cost_E)
    return int(rule.choose(np.array([quality_E]), np.array([cost_E]))[0])


def _best(value_E: Numbers, cost_E: Numbers) -> int:
    """Return the column of the highest value; ties go to the cheaper, then the earlier."""
    top = max(value_E)
    first = value_E.index(top)
    if value_E.count(top) == 1:
        return first
    level = [column for column, value in enumerate(value_E) if value == top]
    return min(level, key=cost_E.__getitem__)


def _net(quality_E: Numbers, cost_E: Numbers, price: float) -> list[float]:
    return [quality - price * usd for quality, usd in zip(quality_E, cost_E, strict=True)]


def _capped(value_E: Numbers, can_E: Sequence[bool]) -> list[float]:
    return [value if can else -math.inf for value, can in zip(value_E, can_E, strict=True)]


def can_weigh_costs(fitted: FittedRouter) -> bool:
    """Whether every model's cost is known, so that a price on cost means something."""
    return bool(np.isfinite(fitted.mean_cost).all())
