"""The clerk: fetches blocks of units from the store of limits, and reports what was used."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import Any

from crossroads.gateway.governance.accounts import Account
from crossroads.gateway.governance.leases import LeasedBudget, LeasedMeter
from crossroads.gateway.governance.meters import NS, Meter, MoneyMeter
from crossroads.gateway.governance.periods import SteadyClock
from crossroads.gateway.governance.stores import Store, StoreError

logger = logging.getLogger(__name__)

_TICK_S = 1.0  # after which what was used is reported and what lies idle is given back
_EXCHANGE_S = 2.0
_LAST_PAUSES_S = (0.1, 0.4)  # between the tries to report while closing
_UNTRIED = "not started"


class LeasedMeters:
    """Makes meters whose counts all workers share."""

    def __init__(self, clerk: Clerk, clock: SteadyClock) -> None:
        self._clerk, self._clock = clerk, clock

    def limit(self, account: Account, scope: str, period: str) -> Meter:
        return LeasedMeter(account, scope=scope, period=period, clerk=self._clerk)

    def budget(self, account: Account, scope: str, period: str) -> MoneyMeter:
        return LeasedBudget(
            account, scope=scope, period=period, clerk=self._clerk, clock=self._clock
        )


class Clerk:
    """Exchanges with the store, in one task: at once for who waits, else once a second.

    Parameters
    ----------
    store : shared
    ttl_s : after which a worker that is not heard of loses its leases
    block_share : of a limit, taken at a time
    is_open : whether to serve on while the store is gone

    Attributes
    ----------
    worker : name of this process in the store
    is_down : whether the store is gone, or was not yet reached
    problem : what it said
    """

    def __init__(self, store: Store, *, ttl_s: float, block_share: float, is_open: bool) -> None:
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.block_share, self.is_open = block_share, is_open
        self.listed: list[LeasedMeter] = []
        self.is_down, self.problem = True, _UNTRIED
        self.store = store
        self._ttl_s = ttl_s
        self._tick_s = min(_TICK_S, ttl_s / 4)
        self._next_tick = 0.0
        self._alive_until = 0.0
        self._event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Somebody waits, or will soon."""
        self._event.set()

    async def start(self) -> None:
        """Reach the store, if it is there; then look after the meters."""
        await self.exchange(is_tick=True)
        if self.is_down:
            logger.warning("the store of limits is not there (%s)", self.problem)
        self._task = asyncio.create_task(self._run(), name="governance")

    async def close(self) -> None:
        """Report what was used and give everything back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._take_leave()
        await self.store.close()

    def describe(self) -> dict[str, Any]:
        return {
            "reachable": not self.is_down,
            "problem": self.problem,
            "worker": self.worker,
            "on_failure": "open" if self.is_open else "closed",
        }

    async def _run(self) -> None:
        while True:
            wait = max(0.0, self._next_tick - time.monotonic())
            try:
                async with asyncio.timeout(wait):
                    await self._event.wait()
            except TimeoutError:
                pass  # a tick is due
            self._event.clear()
            if self.is_down and time.monotonic() < self._next_tick:
                continue
            await self.exchange(is_tick=time.monotonic() >= self._next_tick)

    async def _take_leave(self) -> None:
        """Make the last reports; a store that was gone, or failed just now, may be back."""
        pauses = iter(_LAST_PAUSES_S)
        reports = 0
        while reports < 2:  # one that was under way, then the last
            if self.is_down and not any(meter.used or meter.calls for meter in self.listed):
                return
            for meter in self.listed:
                meter.retire()
            await self.exchange(is_tick=True)
            if not self.is_down:
                reports += 1
                continue
            pause = next(pauses, None)
            if pause is None:
                num = sum(meter.used > 0 for meter in self.listed)
                logger.error("what was used last of %d limits never reached their store", num)
                return
            await asyncio.sleep(pause)

    async def exchange(self, *, is_tick: bool) -> None:
        """Tell the store what there is to tell; ``is_tick``: the regular report."""
        if is_tick:
            self._next_tick = time.monotonic() + self._tick_s
        sent = time.monotonic_ns()
        self.listed = [meter for meter in self.listed if meter.is_listed]
        found = [(meter, meter.next_ask(sent, is_tick=is_tick)) for meter in self.listed]
        asks = [(meter, ask) for meter, ask in found if ask is not None]
        if not asks and not is_tick:
            return
        try:
            async with asyncio.timeout(_EXCHANGE_S):
                answers = await self.store.exchange(
                    self.worker, int(self._ttl_s * 1000), [ask for _, ask in asks]
                )
        except (StoreError, TimeoutError) as error:
            self._lost(str(error) or "no answer in time")
            return
        except Exception as error:
            logger.exception("the exchange with the store of limits failed")
            self._lost(f"{type(error).__name__}: {error}")
            return
        if self.is_down and self.problem != _UNTRIED:
            logger.info("the store of limits is there again")
        self.is_down, self.problem = False, ""
        self._alive_until = sent / NS + self._ttl_s
        now = time.monotonic_ns()
        for (meter, ask), answer in zip(asks, answers, strict=True):
            meter.hear(ask, answer, now)

    def _lost(self, problem: str) -> None:
        if not self.is_down:
            how = "serving on with what was left" if self.is_open else "refusing what needs it"
            logger.warning("the store of limits is gone (%s); %s", problem, how)
        self.is_down, self.problem = True, problem
        is_void = time.monotonic() >= self._alive_until
        for meter in self.listed:
            meter.lose(is_void=is_void)
