"""Decision rules: from estimated quality and cost to one model per prompt.

Rules are separate from routers (quality estimates) on purpose: thresholds and budgets are arguments
of the decision. Written on the command line as ``argmax``, ``tradeoff:0.5``, ``max-cost:0.001``
(USD per call) or ``min-quality:0.7``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name

Float = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


class DecisionRule(Protocol):
    """Chooses one of K models for each of N prompts. Ties go to the cheaper, then the earlier."""

    def choose(self, quality_NK: Float, cost_NK: Float) -> Ints:
        """Return the chosen column per row, shape (N,). Cost broadcasts from (K,)."""
        ...


def _best(value_NK: Float, cost_NK: Float) -> Ints:
    """Argmax with ties to the cheaper model."""
    top = value_NK >= value_NK.max(axis=1, keepdims=True)
    return np.asarray(np.where(top, cost_NK, np.inf).argmin(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Argmax:
    """The model of highest estimated quality, whatever it costs."""

    rule: ClassVar[str] = "argmax"

    def choose(self, quality_NK: Float, cost_NK: Float) -> Ints:
        return _best(quality_NK, np.broadcast_to(cost_NK, quality_NK.shape))

    def __str__(self) -> str:
        return self.rule


@dataclass(frozen=True)
class Tradeoff:
    """argmax of quality - price * cost; ``price`` is quality per USD (lambda in the papers)."""

    price: float
    rule: ClassVar[str] = "tradeoff"

    def __post_init__(self) -> None:
        _check_number(self.rule, self.price)

    def choose(self, quality_NK: Float, cost_NK: Float) -> Ints:
        cost = np.broadcast_to(cost_NK, quality_NK.shape)
        return _best(quality_NK - self.price * cost, cost)

    def __str__(self) -> str:
        return _spell(self.rule, self.price)


@dataclass(frozen=True)
class MaxCost:
    """Highest quality among models costing at most ``usd`` a call; the cheapest if none does."""

    usd: float
    rule: ClassVar[str] = "max-cost"

    def __post_init__(self) -> None:
        _check_number(self.rule, self.usd)

    def choose(self, quality_NK: Float, cost_NK: Float) -> Ints:
        cost = np.broadcast_to(cost_NK, quality_NK.shape)
        affordable = cost <= np.maximum(self.usd, cost.min(axis=1, keepdims=True))
        return _best(np.where(affordable, quality_NK, -np.inf), cost)

    def __str__(self) -> str:
        return _spell(self.rule, self.usd)


@dataclass(frozen=True)
class MinQuality:
    """Cheapest model estimated at ``floor`` or better; the best one if none is."""

    floor: float
    rule: ClassVar[str] = "min-quality"

    def __post_init__(self) -> None:
        _check_number(self.rule, self.floor)

    def choose(self, quality_NK: Float, cost_NK: Float) -> Ints:
        cost = np.broadcast_to(cost_NK, quality_NK.shape)
        floor = np.minimum(self.floor, quality_NK.max(axis=1, keepdims=True))
        return _best(np.where(quality_NK >= floor, -cost, -np.inf), -quality_NK)

    def __str__(self) -> str:
        return _spell(self.rule, self.floor)


_WITH_NUMBER = {rule.rule: rule for rule in (Tradeoff, MaxCost, MinQuality)}


def parse_rule(text: str) -> DecisionRule:
    """Build a rule from its name and number, for instance ``tradeoff:0.5``. Raises UsageError."""
    name, _, number = text.partition(":")
    if name == Argmax.rule and not number:
        return Argmax()
    if name not in _WITH_NUMBER:
        raise unknown_name("decision rule", name, [Argmax.rule, *_WITH_NUMBER])
    try:
        value = float(number)
    except ValueError:
        raise UsageError(
            f"decision rule {text!r}: expected {name}:NUMBER, for instance {name}:0.5"
        ) from None
    return _WITH_NUMBER[name](value)


def _spell(rule: str, value: float) -> str:
    """Write a rule so that ``parse_rule`` reads back exactly the same number."""
    return f"{rule}:{np.format_float_positional(value, trim='-')}"


def _check_number(rule: str, value: float) -> None:
    if not np.isfinite(value) or value < 0:
        raise UsageError(f"decision rule {rule}: expected a number >= 0, got {value!r}")
