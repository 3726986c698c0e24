"""From estimated quality to a choice among the models that may answer.

Shapes: K models of the router, E <= K eligible ones. A cost price p (quality per USD) is what a
paced budget asks for on top of the policy's own rule: ``argmax quality - (lambda + p) * cost``.
"""

from __future__ import annotations

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
from crossroads.prompts.fitted import FittedRouter

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
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


def mixture(rule: DecisionRule, quality_E: Float64, cost_E: Float64) -> list[tuple[int, float]]:
    """Return the columns a rule may choose with their probabilities, most thrifty last."""
    quality, cost = quality_E[None], cost_E[None]
    if not isinstance(rule, BudgetRule):
        return [(int(rule.choose(quality, cost)[0]), 1.0)]
    low, high = (int(side[0]) for side in rule.sides(quality, cost))
    if low == high:
        return [(low, 1.0)]
    return [(low, 1.0 - rule.share), (high, rule.share)]


def values(rule: DecisionRule, quality_E: Float64, cost_E: Float64) -> Float64:
    """Return what the rule maximises, shape (E,); -inf where it may not choose."""
    if isinstance(rule, PricedMaxCost):
        can = rule.rule.affordable(quality_E[None], cost_E)[0]
        return np.where(can, quality_E - rule.price * cost_E, -np.inf)
    if isinstance(rule, MaxCost):
        return np.where(rule.affordable(quality_E[None], cost_E)[0], quality_E, -np.inf)
    if isinstance(rule, MinQuality):
        enough = quality_E >= rule.floor
        # those below the floor come last, best first
        return np.where(enough, 1.0 - cost_E / max(float(cost_E.max()), 1e-300), quality_E - 10.0)
    price = 0.0
    if isinstance(rule, Tradeoff):
        price = rule.price
    elif isinstance(rule, BudgetRule):
        price = rule.low_price
    return np.asarray(quality_E - price * cost_E)


def ranked(rule: DecisionRule, quality_E: Float64, cost_E: Float64) -> Sequence[int]:
    """Return the columns best first by the rule's value, without those it may not choose."""
    value = values(rule, quality_E, cost_E)
    order = np.lexsort((cost_E, -value))
    return [int(column) for column in order if np.isfinite(value[column])]


def can_weigh_costs(fitted: FittedRouter) -> bool:
    """Whether every model's cost is known, so that a price on cost means something."""
    return bool(np.isfinite(fitted.mean_cost).all())
