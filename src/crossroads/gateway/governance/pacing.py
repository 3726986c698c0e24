"""Paced spend: a price on cost that makes a budget last exactly as long as its period.

The router maximises ``quality - price * cost``; the price is the dual variable of the constraint
that the period's spend is its budget, and is learned while the period runs. Every so often:

    target = (budget - spent) * expected traffic since the last step / expected traffic to come
    error  = clip(spend since the last step / target - 1, -1, 1)
    log price <- log price + gain * weight * error,      weight = calls / (calls + 20)

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
    spent_usd, calls : of the period, at the last step
    mean_usd : running mean of the cost of a call; 0 before the first
    """

    price: float = 0.0
    at: float = 0.0
    start: float = 0.0
    spent_usd: float = 0.0
    calls: float = 0.0
    mean_usd: float = 0.0

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

    def adopt(self, state: PaceState) -> None:
        """Go on from a state that another process, or an earlier one, came to."""
        self.state = state
        self.price = self._effective(state)

    def is_due(self, start: float, end: float, now: float) -> bool:
        """Return whether it is time for a step in the period from ``start`` to ``end``."""
        step = min(max((end - start) / _STEPS, _LEAST_STEP_S), _MOST_STEP_S)
        return self.state.start != start or now >= self.state.at + step

    def step(self, start: float, end: float, now: float, *, spent_usd: float, calls: int) -> None:
        """Update the price, knowing what all of the period's calls so far came to."""
        state = self.state
        if state.start != start:
            # A new period starts with the price the last one ended with.
            self.adopt(PaceState(state.price, start, start, 0.0, 0.0, state.mean_usd))
            state = self.state
        new_usd = max(0.0, spent_usd - state.spent_usd)
        new_calls = max(0.0, calls - state.calls)
        if new_calls == 0 or new_usd < _NOTHING_USD:
            # Nothing was paid since: its traffic is to be made up for by the rest.
            self.adopt(PaceState(state.price, now, start, spent_usd, calls, state.mean_usd))
            return
        mean = new_usd / new_calls
        if state.mean_usd > 0:
            memory = 1 - (1 - _MEMORY) ** min(new_calls, _CALLS_FOR_HALF)
            mean = state.mean_usd + memory * (mean - state.mean_usd)
        price = self._next_price(state, start, end, now, new_usd=new_usd, calls=new_calls)
        self.adopt(PaceState(self._bounded(price, mean), now, start, spent_usd, calls, mean))

    def _next_price(
        self,
        state: PaceState,
        start: float,
        end: float,
        now: float,
        *,
        new_usd: float,
        calls: float,
    ) -> float:
        before = elapsed_share(start, end, state.at, self._traffic)
        passed = elapsed_share(start, end, now, self._traffic) - before
        if 1 - before < _LAST_SHARE:
            return state.price
        target = max(0.0, self.usd - state.spent_usd) * passed / (1 - before)
        error = 1.0 if target <= 0 else min(new_usd / target - 1, 1.0)
        weight = calls / (calls + _CALLS_FOR_HALF)
        if state.price == 0.0:  # so far nothing had to be saved
            return _FIRST * weight * max(0.0, error) * calls / new_usd
        return state.price * math.exp(_GAIN * weight * error)

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
