"""Decision rules: from estimated quality and cost to one model per prompt.

Rules are separate from routers (quality estimates) on purpose: thresholds and budgets are arguments
of the decision. Written on the command line as ``argmax``, ``tradeoff:0.5``, ``max-cost:0.001``
(USD per call), ``min-quality:0.7`` or ``budget:0.001`` (USD per call on average over a stream).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import UsageError, unknown_name

Float = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

EXCLUDED = -1e3  # estimate of a model that a router rules out


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
        if len(quality_NK) == 1:  # a served prompt: a few numbers are faster without numpy
            quality = quality_NK[0].tolist()
            highest = max(quality)
            if quality.count(highest) == 1:
                return np.array((quality.index(highest),))
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
    """Highest quality among models costing at most ``usd`` a call; the cheapest if none does.

    A model that the router rules out (an estimate of ``EXCLUDED``) counts as unaffordable.
    """

    usd: float
    rule: ClassVar[str] = "max-cost"

    def __post_init__(self) -> None:
        _check_number(self.rule, self.usd)

    def choose(self, quality_NK: Float, cost_NK: Float) -> Ints:
        cost = np.broadcast_to(cost_NK, quality_NK.shape)
        return _best(np.where(self.affordable(quality_NK, cost), quality_NK, -np.inf), cost)

    def affordable(self, quality_NK: Float, cost_NK: Float) -> npt.NDArray[np.bool_]:
        """Return which models may be chosen, shape (N, K); where all are ruled out, all compete."""
        ruled_out = quality_NK <= EXCLUDED
        cost = np.where(ruled_out & ~ruled_out.all(axis=1, keepdims=True), np.inf, cost_NK)
        return np.asarray(cost <= np.maximum(self.usd, cost.min(axis=1, keepdims=True)))

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


@dataclass(frozen=True)
class Budget:
    """A wish: spend ``usd`` a call on average. It decides only once calibrated: ``BudgetRule``.

    ``crossroads.prompts.budget`` calibrates, on estimates of prompts the router did not learn from.
    """

    usd: float
    rule: ClassVar[str] = "budget"

    def __post_init__(self) -> None:
        _check_number(self.rule, self.usd)

    def choose(self, quality_NK: Float, cost_NK: Float) -> Ints:
        """Refuse: raises UsageError."""
        raise UsageError(
            f"decision rule {str(self)!r} is not calibrated; fit the router with this rule on a "
            "table with costs, or use crossroads.prompts.budget.fit_budget"
        )

    def __str__(self) -> str:
        return _spell(self.rule, self.usd)


@dataclass(frozen=True)
class BudgetRule:
    """A calibrated budget: two trade-offs mixed at random, so that the mean cost is ``usd``.

    One price per unit of cost cannot hit every budget: as it grows, the spend falls in steps. The
    two prices on either side of the step are mixed. Written ``budget:USD:LOW:HIGH:SHARE``.

    Parameters
    ----------
    usd : mean cost of a call it was calibrated for, >= 0
    low_price, high_price : quality per USD of the two trade-offs, 0 <= low <= high
    share : probability of deciding by ``high_price``, the thriftier one, in [0, 1]
    """

    usd: float
    low_price: float
    high_price: float
    share: float
    rule: ClassVar[str] = "budget"

    def __post_init__(self) -> None:
        for number in (self.usd, self.low_price, self.high_price, self.share):
            _check_number(self.rule, number)
        if self.low_price > self.high_price or self.share > 1:
            raise UsageError(
                f"decision rule {self.rule}: expected low price <= high price and a share <= 1, "
                f"got {self.low_price!r}, {self.high_price!r} and {self.share!r}"
            )

    def choose(self, quality_NK: Float, cost_NK: Float, draw_N: Float | None = None) -> Ints:
        """Choose; ``draw_N`` are uniform in [0, 1), one a prompt (``budget.prompt_draws``).

        Without them they are drawn anew from the same seed in each call, which suits one large
        batch: prompts routed one by one would all get the same draw.
        """
        if draw_N is None:
            draw_N = np.random.default_rng(0).random(len(quality_NK))
        low_N, high_N = self.sides(quality_NK, cost_NK)
        return np.asarray(np.where(draw_N < self.share, high_N, low_N), dtype=np.int64)

    def sides(self, quality_NK: Float, cost_NK: Float) -> tuple[Ints, Ints]:
        """Return the choices at the low and at the high price, each of shape (N,)."""
        low = Tradeoff(self.low_price).choose(quality_NK, cost_NK)
        return low, Tradeoff(self.high_price).choose(quality_NK, cost_NK)

    def propensity(self, quality_NK: Float, cost_NK: Float, choice_N: Ints) -> Float:
        """Return the probability with which each choice was made, shape (N,)."""
        low_N, high_N = self.sides(quality_NK, cost_NK)
        return np.asarray(
            self.share * (high_N == choice_N) + (1 - self.share) * (low_N == choice_N)
        )

    def __str__(self) -> str:
        numbers = (self.usd, self.low_price, self.high_price, self.share)
        return ":".join([self.rule, *(_plain(number) for number in numbers)])


_WITH_NUMBER = {rule.rule: rule for rule in (Tradeoff, MaxCost, MinQuality, Budget)}


def parse_rule(text: str) -> DecisionRule:
    """Build a rule from its name and number, for instance ``tradeoff:0.5``. Raises UsageError."""
    name, _, number = text.partition(":")
    if name == BudgetRule.rule and ":" in number:
        return _parse_calibrated(text, number)
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


def _parse_calibrated(text: str, numbers: str) -> BudgetRule:
    try:
        usd, low_price, high_price, share = (float(part) for part in numbers.split(":"))
    except ValueError:
        raise UsageError(
            f"decision rule {text!r}: expected budget:USD, or budget:USD:LOW:HIGH:SHARE as written "
            "by a calibration"
        ) from None
    return BudgetRule(usd, low_price, high_price, share)


def _spell(rule: str, value: float) -> str:
    return f"{rule}:{_plain(value)}"


def _plain(value: float) -> str:
    """Write a number so that ``parse_rule`` reads back exactly the same one."""
    return np.format_float_positional(value, trim="-")


def _check_number(rule: str, value: float) -> None:
    if not np.isfinite(value) or value < 0:
        raise UsageError(f"decision rule {rule}: expected a number >= 0, got {value!r}")
