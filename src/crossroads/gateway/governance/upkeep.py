"""What a governor does once a second, beside the requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from itertools import islice

import orjson

from crossroads.gateway.governance.accounts import NANO_USD
from crossroads.gateway.governance.pacing import PaceState
from crossroads.gateway.governance.periods import SteadyClock
from crossroads.gateway.governance.plans import Budget
from crossroads.gateway.governance.stores import Store, StoreError

logger = logging.getLogger(__name__)

_EVERY_S = 1.0
_REFRESHED = 32  # budgets a second whose counts are brought up to date, in turn


class Upkeep:
    """Steps the prices of paced budgets, says when a budget is nearly spent, rereads files.

    Parameters
    ----------
    clock : watched for steps of the wall clock
    budgets : returns those there are
    reread : reads files that changed
    """

    def __init__(
        self,
        clock: SteadyClock,
        budgets: Callable[[], Iterable[Budget]],
        reread: Callable[[], Awaitable[None]],
    ) -> None:
        self._clock = clock
        self._budgets = budgets
        self._reread = reread
        self._turn = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, store: Store | None) -> None:
        self._task = asyncio.create_task(self._run(store), name="governance-upkeep")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self, store: Store | None) -> None:
        while True:
            try:
                await self.once(store)
            except Exception:
                logger.exception("the upkeep of limits failed; it goes on")
            await asyncio.sleep(_EVERY_S)

    async def once(self, store: Store | None) -> None:
        """Do all of it now."""
        has_stepped = self._clock.watch()
        await self._reread()
        budgets = list(self._budgets())
        if has_stepped:
            for budget in budgets:
                budget.meter.follow()
        for budget in self._next(budgets):
            budget.meter.touch()
        for budget in budgets:
            self._alert(budget)
            if budget.pacer is not None:
                budget.meter.touch()
                await pace(budget, store, self._clock.now())

    def _next(self, budgets: list[Budget]) -> Iterable[Budget]:
        start = self._turn if self._turn < len(budgets) else 0
        self._turn = start + _REFRESHED
        return islice(budgets, start, start + _REFRESHED)

    def _alert(self, budget: Budget) -> None:
        meter = budget.meter
        if budget.alert_start != meter.start:
            budget.alert_start, budget.alerted = meter.start, 0.0
        share = meter.spent / meter.limit
        reached = max((at for at in budget.settings.alert_at if at <= share), default=0.0)
        if reached > budget.alerted:
            budget.alerted = reached
            reset = datetime.fromtimestamp(meter.end, UTC).isoformat()
            logger.warning(
                "budget of %s: %.0f %% of %g USD per %s is spent; it resets at %s",
                *(meter.scope, share * 100, meter.limit / NANO_USD, meter.period, reset),
            )


async def pace(budget: Budget, store: Store | None, now: float) -> None:
    """Step a budget's price where that is due, or take over what another worker came to."""
    meter, pacer = budget.meter, budget.pacer
    if pacer is None or not pacer.is_due(meter.start, meter.end, now):
        return
    if store is None:
        _step(budget, now)
        return
    name = f"pace:{budget.name}"
    try:
        found = await store.read(name)
        state = _parsed(found)
        if state is not None:
            pacer.adopt(state)
        if meter.is_known and pacer.is_due(meter.start, meter.end, now):
            before = pacer.state
            _step(budget, now)
            if pacer.state is before:
                return  # put off
            if not await store.swap(name, found, orjson.dumps(pacer.state.to_dict())):
                pacer.adopt(state or PaceState())  # another worker was first; its step is read next
    except StoreError:
        return  # the price stays as it is until the store is back


def _step(budget: Budget, now: float) -> None:
    meter, pacer = budget.meter, budget.pacer
    if pacer is not None:
        spent = meter.spent / NANO_USD
        pacer.step(meter.start, meter.end, now, spent_usd=spent, calls=meter.total_calls)


def _parsed(body: bytes | None) -> PaceState | None:
    if body is None:
        return None
    try:
        return PaceState.from_dict(orjson.loads(body))
    except ValueError:
        return None
