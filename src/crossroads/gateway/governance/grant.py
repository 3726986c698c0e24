"""Leave to make one call, and what it holds until the call is over."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from crossroads.gateway.call import Dialect
from crossroads.gateway.contracts import Usage
from crossroads.gateway.errors import Headers
from crossroads.gateway.governance.accounts import NANO_USD
from crossroads.gateway.governance.meters import Meter
from crossroads.gateway.governance.pacing import Pacer
from crossroads.gateway.governance.refusals import limit_headers, out_of_money


@dataclass(slots=True)
class Plan:
    """Everything a key's calls are counted by: its own limits and its team's.

    Attributes
    ----------
    counted : meters that take one unit a call: requests, and calls at a time
    requests : those of ``counted`` that count requests
    tokens : meters of tokens
    budgets : meters of money
    pacers : of those budgets that are paced
    """

    counted: tuple[Meter, ...] = ()
    requests: tuple[Meter, ...] = ()
    tokens: tuple[Meter, ...] = ()
    budgets: tuple[Meter, ...] = ()
    pacers: tuple[Pacer, ...] = ()


class FreeGrant:
    """Leave without limits."""

    __slots__ = ()
    cost_price = 0.0
    is_metered = False

    def headers(self) -> Headers:
        return []

    async def reserve(self, usd: float) -> None:
        pass

    def settle(self, usage: Usage, usd: float) -> None:
        pass

    def release(self) -> None:
        pass


class MeteredGrant:
    """Holds one request, its estimated tokens and the money reserved for it.

    Attributes
    ----------
    plan : what it is counted by
    num_counted, num_tokens : meters of ``plan.counted`` and ``plan.tokens`` it has units of
    """

    __slots__ = ("_dialect", "_is_over", "_nano", "_tokens", "num_counted", "num_tokens", "plan")
    is_metered = True

    def __init__(self, plan: Plan, dialect: Dialect, tokens: int) -> None:
        self.plan = plan
        self.num_counted = self.num_tokens = 0
        self._dialect = dialect
        self._tokens = tokens
        self._nano = 0
        self._is_over = False

    @property
    def cost_price(self) -> float:
        """Sum of the prices of all paced budgets: each is the price of one constraint."""
        price = 0.0
        for pacer in self.plan.pacers:
            price += pacer.price
        return price

    def headers(self) -> Headers:
        plan = self.plan
        if not plan.requests and not plan.tokens:
            return []
        return limit_headers(plan.requests, plan.tokens, self._dialect, time.monotonic_ns())

    async def reserve(self, usd: float) -> None:
        """Set money aside; again, to set more aside. Raises ApiError 429 or 503.

        A call that costs nothing is let through even where the budget is used up.
        """
        budgets = self.plan.budgets
        nano = nano_usd(usd)
        if not budgets or nano == 0 or self._is_over:
            return
        now = time.monotonic_ns()
        for i, meter in enumerate(budgets):
            if meter.take(nano, now):
                continue
            taken = False
            try:
                taken = await meter.ask(nano)
            finally:
                if not taken:
                    for earlier in budgets[:i]:
                        earlier.settle(nano, 0, now)
            if not taken:
                raise out_of_money(meter, nano, time.monotonic_ns())
        self._nano += nano

    def settle(self, usage: Usage, usd: float) -> None:
        nano = nano_usd(usd)
        if nano == 0 and not self._is_over:
            for pacer in self.plan.pacers:
                pacer.num_free += 1
        self._finish(1, usage.input_tokens + usage.output_tokens, nano)

    def release(self) -> None:
        """Give back tokens, money and the place; the call was a request all the same.

        So limits of requests bind a client whose calls all fail, too.
        """
        self._finish(1, 0, 0)

    def withdraw(self) -> None:
        """Give everything back: the call was not let in."""
        self._finish(0, 0, 0)

    def _finish(self, requests: int, tokens: int, nano: int) -> None:
        if self._is_over:
            return
        self._is_over = True
        plan, now = self.plan, time.monotonic_ns()
        for meter in plan.counted[: self.num_counted]:
            meter.settle(1, requests, now)
        for meter in plan.tokens[: self.num_tokens]:
            meter.settle(self._tokens, tokens, now)
        if self._nano or nano:
            for meter in plan.budgets:
                meter.settle(self._nano, nano, now)


def nano_usd(usd: float) -> int:
    """Return billionths of a dollar, rounded up."""
    return math.ceil(usd * NANO_USD)
