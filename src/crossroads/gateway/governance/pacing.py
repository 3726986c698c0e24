"""Paced spend: a price on cost that makes a budget last exactly as long as its period.

The router maximises ``quality - price * cost``; the price is the dual variable of the constraint
that the period's spend is its budget, and is learned while the period runs. Every so often:

    target = (budget - spent) * expected traffic since the last step / expected traffic to come
    error  = clip(spend since the last step / target - 1, -1, 1)
    log price <- log price + gain * weight * error,      weight = calls / (calls + 20)

Calls that cost nothing count too: where all of them go to a free model the price is too high, and
a step in which nothing was spent (error -1) lowers it. A step is put off until its target pays for
two calls, since with fewer its error is a matter of chance, and clipping such errors is not fair.

That is dual mirror descent with entropy as its potential (Balseiro, Lu and Mirrokni: "The Best of
Many Worlds: Dual Mirror Descent for Online Allocation Problems", 2020) on a horizon that recedes:
what was missed is spread over the rest. ``prompts.budget.PacedBudget`` does the same per call with
squared distance as its potential; its step has the scale of the costs, which a gateway does not
know beforehand, so here steps are relative. The price is 0 until a step spends more than its
target, and is bounded by 1/1000 and 100 times quality 1 per mean cost of a call: near the lower
bound it decides nothing and counts as 0, at the upper one only the cheapest model is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crossroads.gateway.governance.periods import elapsed_share

_GAIN = 0.3
_CALLS_FOR_HALF = 20  # with fewer calls in a step their mean cost is mostly chance
_LEAST, _MOST = 1e-3, 1e2  # quality per mean cost of a call
_NEGLIGIBLE = 2e-3  # of the same: counts as no price
_FIRST = 0.1  # of the same, at the first step that spent too much
_NOTHING_USD = 1e-9  # the smallest sum that is counted
_LEAST_CALLS = 2.0  # paid for by the target of a step
_LEAST_SHARE = 0.05  # of the budget, above which a step's target is never put off
_MOST_SURPLUS = 20.0  # targets of a step
_MEMORY = 0.05  # weight of the newest step in the mean cost of a call
_STEPS = 500  # in a period, about
_LEAST_STEP_S, _MOST_STEP_S = 1.0, 600.0
_LAST_SHARE = 0.002  # of a period, in which the rest is not made to go at any price


@dataclass(frozen=True, slots=True)
class PaceState:
    """What a pace remembers; plain numbers, for a store.

    Attributes
    ----------
    price : quality per USD; 0 until a step spent too much
    at : Unix seconds of the last step
    start : of the period, Unix seconds
    spent_usd, calls : of the period, at the last step; calls that cost something
    mean_usd : running mean of what such a call costs; 0 before the first
    surplus_usd : spent beyond twice the target of earlier steps, and not yet made up for
    """

    price: float = 0.0
    at: float = 0.0
    start: float = 0.0
    spent_usd: float = 0.0
    calls: float = 0.0
    mean_usd: float = 0.0
    surplus_usd: float = 0.0

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PaceState:
        """Rebuild from ``to_dict``. Raises ValueError for anything else."""
        try:
            state = cls(**{name: float(value) for name, value in values.items()})
        except (TypeError, AttributeError) as error:
            raise ValueError("not the state of a pace") from error
        if not all(math.isfinite(value) and value >= 0 for value in asdict(state).values()):
            raise ValueError("not the state of a pace")
        return state


class Pacer:
    """Steps the price of one budget.

    Parameters
    ----------
    usd : the period's budget
    traffic : 24 hourly weights (UTC); None for even traffic
    first_price : quality per USD to begin with; None for no price until it is needed

    Attributes
    ----------
    price : quality per USD, for the router; 0 where no price is needed
    state : what ``step`` goes on from
    num_free : calls this process saw since its last step that cost nothing
    """

    def __init__(
        self,
        usd: float,
        *,
        traffic: Sequence[float] | None = None,
        first_price: float | None = None,
    ) -> None:
        self.usd = usd
        self._traffic = traffic
        self.state = PaceState(price=first_price or 0.0)
        self.price = first_price or 0.0
        self.num_free = 0

    def adopt(self, state: PaceState) -> None:
        """Go on from a state that another process, or an earlier one, came to."""
        self.state = state
        self.price = self._effective(state)

    def is_due(self, start: float, end: float, now: float) -> bool:
        """Return whether it is time for a step in the period from ``start`` to ``end``."""
        step = min(max((end - start) / _STEPS, _LEAST_STEP_S), _MOST_STEP_S)
        return self.state.start != start or now >= self.state.at + step

    def step(self, start: float, end: float, now: float, *, spent_usd: float, calls: int) -> None:
        """Update the price, knowing what all of the period's calls so far came to.

        ``calls`` are those that cost something; ``num_free`` tells of the others. Where it is too
        soon to judge, ``state`` stays as it is.
        """
        state = self.state
        if state.start != start:
            # A new period starts with the price the last one ended with.
            self.adopt(PaceState(state.price, start, start, 0.0, 0.0, state.mean_usd))
            state = self.state
        new_usd = max(0.0, spent_usd - state.spent_usd)
        new_calls = max(0.0, calls - state.calls)
        is_free = new_calls == 0 or new_usd < _NOTHING_USD
        target = self._target(state, start, end, now)
        price, mean, surplus = state.price, state.mean_usd, state.surplus_usd
        if is_free and (self.num_free == 0 or not target):
            # Nobody asked, or nothing was left: its traffic is to be made up for by the rest.
            self.num_free = 0
        else:
            enough = min(_LEAST_CALLS * mean, _LEAST_SHARE * self.usd)
            if target is not None and 0 < target < enough and new_usd < 2 * enough:
                return
            if not is_free:
                mean = _mean(mean, new_usd, new_calls)
            price, surplus = self._next_price(target, new_usd=new_usd, calls=new_calls)
            self.num_free = 0
        price = self._bounded(price, mean)
        self.adopt(PaceState(price, now, start, spent_usd, calls, mean, surplus))

    def _target(self, state: PaceState, start: float, end: float, now: float) -> float | None:
        """Return what may be spent since the last step; None when the period is all but over."""
        before = elapsed_share(start, end, state.at, self._traffic)
        if 1 - before < _LAST_SHARE:
            return None
        passed = elapsed_share(start, end, now, self._traffic) - before
        return max(0.0, self.usd - state.spent_usd) * passed / (1 - before)

    def _next_price(
        self, target: float | None, *, new_usd: float, calls: float
    ) -> tuple[float, float]:
        """Return the price after a step, and the surplus."""
        price, surplus = self.state.price, self.state.surplus_usd
        if target is None:
            return price, surplus
        if new_usd > 2 * target:
            error = 1.0
            surplus = min(surplus + new_usd - 2 * target, _MOST_SURPLUS * target)
        else:
            filled = min(surplus, max(0.0, target - new_usd))
            surplus -= filled
            error = (new_usd + filled) / target - 1
        num = calls + self.num_free
        weight = num / (num + _CALLS_FOR_HALF)
        if price == 0.0:  # so far nothing had to be saved
            return 0.0 if error <= 0 else _FIRST * weight * error * calls / new_usd, surplus
        return price * math.exp(_GAIN * weight * error), surplus

    def _bounded(self, price: float, mean_usd: float) -> float:
        if mean_usd <= 0 or price == 0.0:
            return price
        return min(max(price, _LEAST / mean_usd), _MOST / mean_usd)

    def _effective(self, state: PaceState) -> float:
        is_negligible = state.price * state.mean_usd < _NEGLIGIBLE and state.mean_usd > 0
        return 0.0 if is_negligible else state.price

    def describe(self, start: float, end: float, now: float) -> dict[str, Any]:
        """Return plain data: the price, the share due by now."""
        due = elapsed_share(start, end, now, self._traffic)
        return {
            "price": self.price,
            "due_usd": self.usd * due,
            "elapsed_share": due,
            "mean_usd_per_call": self.state.mean_usd,
        }


def _mean(before_usd: float, usd: float, calls: float) -> float:
    """Return the running mean of a call's cost after so many more."""
    mean = usd / calls
    if before_usd <= 0:
        return mean
    memory: float = 1 - (1 - _MEMORY) ** min(calls, _CALLS_FOR_HALF)
    return before_usd + memory * (mean - before_usd)
