"""Meters that hold a block of units on lease from a store, and the clerk who fetches them.

A call takes from the block at hand and waits for nothing; only one that finds it too small waits
for the store. ``free = held - taken - used`` throughout: what the store knows to be ours, less what
running calls hold, less what was used and not yet reported.

Places of calls at a time are free again when a call ends, and its client may come back at once by
another worker. So a worker keeps only a block's worth of free places (none of a limit that is
smaller than a block's share of it allows) and gives the others back as calls end; and who finds
none while other workers hold some asks again for a quarter of a second: one may be on its way.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance.accounts import Account, Bucket
from crossroads.gateway.governance.meters import NS
from crossroads.gateway.governance.periods import SteadyClock, period_of
from crossroads.gateway.governance.stores import Answer, Ask

if TYPE_CHECKING:
    from crossroads.gateway.governance.clerk import Clerk

_IDLE_TICKS = 2  # without a call, after which what is at hand is given back
_REFUSED_NS = 100_000_000  # for which a refusal is repeated without asking again
_CALLS_A_BLOCK = 8  # at least, where there is enough
_SLOT_WAIT_S = 1.0
_PLACE_WAIT_NS = 250_000_000  # for a place that another worker may be giving back
_FIRST_PAUSE_NS, _LAST_PAUSE_NS = 4_000_000, 64_000_000  # between two tries to get one


class LeasedMeter:
    """A limit of requests, tokens or calls at a time, shared by all workers."""

    __slots__ = (
        *("_alone", "_answered", "_block", "_clerk", "_gives", "_heard_ns", "_idle"),
        *("_least_block", "_low", "_pause_ns", "_pending", "_refused", "_refused_until", "_seq"),
        *("_spare", "_waiting", "_wants_more"),
        *(
            "_wants_news",
            "account",
            "calls",
            "held",
            "is_listed",
            "kind",
            "limit",
            "period",
            "scope",
            "taken",
            "used",
        ),
    )

    def __init__(self, account: Account, *, scope: str, period: str, clerk: Clerk) -> None:
        self.account = account
        self.kind, self.limit = account.kind, account.limit
        self.scope, self.period = scope, period
        self.held = self.taken = self.used = self.calls = 0
        self._clerk = clerk
        self._spare = int(account.limit * clerk.block_share)  # free places that are kept
        self._least_block = self._block = max(1, self._spare)
        self._low = 0
        self._wants_more = self._wants_news = self._gives = False
        self._seq = 0
        self._pending: Ask | None = None
        self._answered = Answer(held=0, free=self._block, spent=0, leased=0, calls=0)
        self._heard_ns = -1
        self._waiting: list[tuple[int, asyncio.Future[bool]]] = []
        self._refused, self._refused_until = 0, 0
        self._pause_ns = _FIRST_PAUSE_NS
        self._alone: Bucket | None = None
        self._idle = 0
        self.is_listed = False  # whether the clerk has to look after it

    def take(self, n: int, now: int) -> bool:
        free = self.held - self.taken - self.used - n
        if free < 0:
            return False
        self.taken += n
        self._idle = 0
        if not self.is_listed:
            self.touch()
        if free < self._low:
            self._low = 0
            self._wants_more = True
            self._clerk.wake()
        return True

    async def ask(self, n: int) -> bool:
        now = time.monotonic_ns()
        if self.kind == "parallel":
            return await self._ask_for_place(n, now + _PLACE_WAIT_NS)
        if not self._clerk.is_down and n >= self._refused > 0 and now < self._refused_until:
            return False
        return await self._ask_once(n, now)

    async def _ask_for_place(self, n: int, until: int) -> bool:
        """Ask until there is one, the time is over, or no other worker holds any.

        All who wait ask at the same moments, so that many cost the store no more than one.
        """
        now = time.monotonic_ns()
        while True:
            if not self._clerk.is_down and now < self._refused_until:
                await asyncio.sleep((self._refused_until - now) / NS)
                now = time.monotonic_ns()
            if self.take(n, now) or await self._ask_once(n, now):
                self._pause_ns = _FIRST_PAUSE_NS
                return True
            now = time.monotonic_ns()
            is_elsewhere = self._answered.leased > self.held and not self._clerk.is_down
            if now >= until or not is_elsewhere or n > self.limit:
                return False

    async def _ask_once(self, n: int, now: int) -> bool:
        if self._clerk.is_down:
            return self._take_alone(n, now)
        if n > self.limit:
            return False
        waiting: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((n, waiting))
        self._idle = 0
        self.touch()
        self._clerk.wake()
        try:
            is_taken = await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.result():
                self.taken -= n
            raise
        if not is_taken and self._clerk.is_down:
            return self._take_alone(n, time.monotonic_ns())
        return is_taken

    def settle(self, taken: int, used: int, now: int) -> None:
        self.taken -= taken
        if self.kind != "parallel":
            self.used += used
            self.calls += used > 0
        if self._alone is not None and taken != used:
            self._alone.give(taken - used, now)
        self._idle = 0
        if not self.is_listed:
            self.touch()
        if self.kind == "parallel" and self.held - self.taken > 2 * self._spare:
            self._gives = True
            self._clerk.wake()

    def left(self, now: int) -> int:
        free = self._answered.free
        if self.account.period_s and self._heard_ns >= 0:
            refilled = (now - self._heard_ns) * self.limit // (self.account.period_s * NS)
            free += refilled
        # The store's bucket refills while units of it are on lease here: both together may be more
        # than there can ever be.
        return min(self.limit, free + self.held - self.taken - self.used)

    def wait_s(self, n: int, now: int) -> float | None:
        if n > self.limit:
            return None
        if self.account.period_s == 0:
            return _SLOT_WAIT_S
        missing = max(0, n - self.left(now))
        # What other workers have on lease and do not use is back after a few ticks.
        return max(missing * self.account.period_s / self.limit, _REFUSED_NS / NS)

    def reset_s(self, now: int) -> float:
        missing = self.limit - self.left(now)
        return max(0.0, missing * self.account.period_s / self.limit)

    def resize(self, limit: int) -> None:
        self.limit = limit
        self.account = replace(self.account, limit=limit)
        self._spare = int(limit * self._clerk.block_share)
        self._least_block = self._block = max(1, self._spare)
        self._refused = self._refused_until = 0
        self._pending = (
            None if self._pending is None else replace(self._pending, account=self.account)
        )

    def next_ask(self, now: int, *, is_tick: bool) -> Ask | None:
        """Return what to tell the store; None for nothing. The clerk asks once at a time."""
        free = self.held - self.taken - self.used
        need = 0
        if self._waiting:
            need = max(0, sum(n for n, _ in self._waiting) - free)
            largest = max(n for n, _ in self._waiting)
            if self.kind != "parallel":
                self._block = max(self._least_block, _CALLS_A_BLOCK * largest)
        if self._pending is not None:  # was sent and not answered: the same report again
            self._pending = replace(self._pending, need=need, since_ms=self._since_ms(now))
            return self._pending
        give = 0
        if is_tick:
            self._idle += 1
            self._gives |= self._idle > _IDLE_TICKS
        if self._gives and not self._waiting:
            kept = self._spare if self.kind == "parallel" and self._idle <= _IDLE_TICKS else 0
            give = max(0, free - kept)
            self._gives = self._wants_more = False
        is_report = is_tick and (self.used > 0 or self._wants_news or self._idle == 1)
        if not (self._waiting or give or self._wants_more or is_report):
            if self._idle > _IDLE_TICKS and self.held == self.taken == self.used == 0:
                self.is_listed = False
            return None
        self._seq += 1
        self.held -= give
        self._pending = Ask(
            account=self.account,
            seq=self._seq,
            used=self.used,
            give=give,
            calls=self.calls,
            need=need,
            block=self._block if self._waiting or self._wants_more else 0,
            since_ms=self._since_ms(now),
        )
        self._wants_more = self._wants_news = False
        return self._pending

    def hear(self, ask: Ask, answer: Answer, now: int) -> None:
        """Take the store's answer in; calls that wait get their units, in order."""
        if ask is not self._pending:  # a new period or another limit began meanwhile
            self._clerk.wake()
            return
        self._pending = None
        self.used -= ask.used
        self.calls -= ask.calls
        self.held = answer.held
        self._answered, self._heard_ns, self._alone = answer, now, None
        self._low = max(0, self.held - self.taken - self.used) // 4
        waiting, self._waiting = self._waiting, []
        for n, future in waiting:
            if future.done():
                continue
            missing = n - (self.held - self.taken - self.used)
            is_taken = missing <= 0
            if is_taken:
                self.taken += n
            elif answer.free >= missing:
                self._waiting.append((n, future))  # came while the clerk was away
                self._clerk.wake()
                continue
            else:
                # Too little for a call here may be enough with the like of another worker: kept,
                # such pieces would lock the last units of a limit that is asked for all the time.
                self._gives = True
                self._refuse(n, now)
            future.set_result(is_taken)
        if self._gives:
            self._clerk.wake()

    def _refuse(self, n: int, now: int) -> None:
        """Remember that there is no such thing, for a while."""
        self._refused = n
        if self.kind != "parallel":
            self._refused_until = now + _REFUSED_NS
        elif now >= self._refused_until:  # once for all who asked together
            self._refused_until = now + self._pause_ns
            self._pause_ns = min(2 * self._pause_ns, _LAST_PAUSE_NS)

    def lose(self, *, is_void: bool) -> None:
        """The store is gone; ``is_void``: so long that our lease is too."""
        if is_void:
            self.held = min(self.held, self.taken + self.used)
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_result(False)

    def _take_alone(self, n: int, now: int) -> bool:
        """Go on with what was left when the store was last heard of, for this worker alone."""
        if not self._clerk.is_open:
            raise ApiError(
                "The store of limits cannot be reached; try again soon.",
                status=503,
                code="store_unavailable",
                headers=[(b"retry-after", b"1")],
            )
        if self.account.period_s:
            if self._alone is None:
                period = self.account.period_s * NS
                level = max(0, self._answered.free) * period
                self._alone = Bucket(self.limit, period, now, level)
            is_taken = self._alone.take(n, now)
        else:
            is_taken = self._answered.free + self.held - self.taken - self.used >= n
        if is_taken:
            self.taken += n
            self._idle = 0
            self.touch()
        return is_taken

    def touch(self) -> None:
        """Have the clerk look after it: report, and hear what others did."""
        self._wants_news = True
        if not self.is_listed:
            self.is_listed = True
            self._clerk.listed.append(self)

    def retire(self) -> None:
        """Give back at the next tick what no call holds."""
        self._idle = _IDLE_TICKS

    def _since_ms(self, now: int) -> int:
        return -1 if self._heard_ns < 0 else (now - self._heard_ns) // 1_000_000


class LeasedBudget(LeasedMeter):
    """Money per calendar period, shared by all workers. Attributes as ``meters.BudgetMeter``."""

    __slots__ = ("_clock", "_ends_ns", "_name", "end", "start")

    def __init__(
        self, account: Account, *, scope: str, period: str, clerk: Clerk, clock: SteadyClock
    ) -> None:
        super().__init__(account, scope=scope, period=period, clerk=clerk)
        self._clock = clock
        self._name = account.name
        self.start = self.end = 0.0
        self._ends_ns = 0
        self.follow()

    @property
    def spent(self) -> int:
        """Settled by all workers, as far as is known here."""
        return self._answered.spent - self._answered.leased + self.used

    @property
    def is_known(self) -> bool:
        """Whether the store was heard of in this period."""
        return self._heard_ns >= 0

    @property
    def reserved(self) -> int:
        return self.taken

    @property
    def total_calls(self) -> int:
        """Settled by all workers, as far as is known here."""
        return self._answered.calls + self.calls

    def follow(self) -> None:
        """Begin the period of the time it is, where that is another one."""
        start, end = period_of(self.period, self._clock.now())
        if start != self.start:
            self.start, self.end = start, end
            self.account = replace(self.account, name=f"{self._name}:{start:.0f}")
            self.held = self.used = self.calls = 0
            self._pending, self._heard_ns = None, -1
            free = self._block if self._clerk.is_down else self.limit
            self._answered = Answer(held=0, free=free, spent=0, leased=0, calls=0)
        self._ends_ns = int(self._clock.to_monotonic(self.end) * NS)

    def touch(self) -> None:
        if time.monotonic_ns() >= self._ends_ns:
            self.follow()
        super().touch()

    def take(self, n: int, now: int) -> bool:
        if now >= self._ends_ns:
            self.follow()
        return super().take(n, now)

    def settle(self, taken: int, used: int, now: int) -> None:
        if now >= self._ends_ns:
            self.follow()
        super().settle(taken, used, now)

    def left(self, now: int) -> int:
        if now >= self._ends_ns:
            self.follow()
        return self._answered.free + self.held - self.taken - self.used

    def wait_s(self, n: int, now: int) -> float | None:
        return self.reset_s(now)

    def reset_s(self, now: int) -> float:
        return max(0.0, (self._ends_ns - now) / NS)
