"""Meters: what a request is counted by. Those here keep their counts in this process alone."""

from __future__ import annotations

import time
from typing import Protocol

from crossroads.gateway.governance.accounts import Account, Bucket, Kind
from crossroads.gateway.governance.periods import SteadyClock, period_of

NS = 1_000_000_000
_LEAST_SLOT_WAIT_S = 1.0  # nobody knows when a running call ends


class Meter(Protocol):
    """One limit. ``now`` is ``time.monotonic_ns`` throughout.

    Attributes
    ----------
    kind : what it counts
    scope : whose it is, for messages: ``key 'alice'``
    limit : units
    period : seconds in words, for messages: ``minute``
    """

    kind: Kind
    scope: str
    limit: int
    period: str

    def take(self, n: int, now: int) -> bool:
        """Take ``n`` units at once; False where there are too few at hand."""
        ...

    async def ask(self, n: int) -> bool:
        """Take ``n`` units that were not at hand; False where there are none anywhere.

        Raises ApiError 503 where nobody can tell and the settings say to refuse then.
        """
        ...

    def settle(self, taken: int, used: int, now: int) -> None:
        """Replace units taken by units used."""
        ...

    def left(self, now: int) -> int:
        """Return the units that are left; below 0 for a debt."""
        ...

    def wait_s(self, n: int, now: int) -> float | None:
        """Return the seconds until ``n`` units may be there; None for never."""
        ...

    def reset_s(self, now: int) -> float:
        """Return the seconds until all of the limit is there again."""
        ...

    def resize(self, limit: int) -> None:
        """Change the limit; what was counted stays counted."""
        ...


class MoneyMeter(Meter, Protocol):
    """A budget. All that follows is of the current period, as far as this process knows.

    ``spent`` and ``reserved`` are billionths of a dollar, ``start`` and ``end`` Unix seconds;
    ``is_known`` tells whether ``spent`` is more than a guess.
    """

    @property
    def spent(self) -> int: ...
    @property
    def reserved(self) -> int: ...
    @property
    def total_calls(self) -> int: ...
    @property
    def is_known(self) -> bool: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    def follow(self) -> None:
        """Begin the period of the time it is, where that is another one."""
        ...

    def touch(self) -> None:
        """Have the counts brought up to date soon."""
        ...


class RateMeter:
    """Requests or tokens per period, in a token bucket."""

    __slots__ = ("_bucket", "kind", "limit", "period", "scope")

    def __init__(self, account: Account, *, scope: str, period: str) -> None:
        self.kind, self.limit = account.kind, account.limit
        self.scope, self.period = scope, period
        self._bucket = Bucket(account.limit, account.period_s * NS, time.monotonic_ns())

    def take(self, n: int, now: int) -> bool:
        return self._bucket.take(n, now)

    async def ask(self, n: int) -> bool:
        return False

    def settle(self, taken: int, used: int, now: int) -> None:
        if taken != used:
            self._bucket.give(taken - used, now)

    def left(self, now: int) -> int:
        return self._bucket.free(now)

    def wait_s(self, n: int, now: int) -> float | None:
        ticks = self._bucket.wait(n, now)
        return None if ticks is None else ticks / NS

    def reset_s(self, now: int) -> float:
        bucket = self._bucket
        bucket.refresh(now)
        return (bucket.capacity - bucket.level) / bucket.limit / NS

    def resize(self, limit: int) -> None:
        bucket, now = self._bucket, time.monotonic_ns()
        bucket.refresh(now)
        level = bucket.level + (limit - self.limit) * bucket.period
        self._bucket = Bucket(limit, bucket.period, now, level)
        self.limit = limit


class SlotMeter:
    """Requests at a time."""

    __slots__ = ("_taken", "kind", "limit", "period", "scope")

    def __init__(self, account: Account, *, scope: str) -> None:
        self.kind, self.limit = account.kind, account.limit
        self.scope, self.period = scope, "at a time"
        self._taken = 0

    def take(self, n: int, now: int) -> bool:
        if self._taken + n > self.limit:
            return False
        self._taken += n
        return True

    async def ask(self, n: int) -> bool:
        return False

    def settle(self, taken: int, used: int, now: int) -> None:
        self._taken -= taken

    def left(self, now: int) -> int:
        return self.limit - self._taken

    def wait_s(self, n: int, now: int) -> float | None:
        return _LEAST_SLOT_WAIT_S if n <= self.limit else None

    def reset_s(self, now: int) -> float:
        return 0.0

    def resize(self, limit: int) -> None:
        self.limit = limit


class BudgetMeter:
    """Money per calendar period. A call counts in the period in which it ends.

    Attributes
    ----------
    spent, reserved : billionths of a dollar: settled in this period, and set aside
    total_calls : settled in this period, of those that cost something
    start, end : of the period, in Unix seconds
    """

    __slots__ = (
        *("_clock", "_ends_ns", "end", "kind", "limit", "period", "reserved", "scope", "spent"),
        *("start", "total_calls"),
    )

    def __init__(self, account: Account, *, scope: str, period: str, clock: SteadyClock) -> None:
        self.kind, self.limit = account.kind, account.limit
        self.scope, self.period = scope, period
        self._clock = clock
        self.spent = self.reserved = self.total_calls = 0
        self.start, self.end = period_of(period, clock.now())
        self._ends_ns = int(clock.to_monotonic(self.end) * NS)

    is_known = True

    def touch(self) -> None:
        self.follow()

    def follow(self) -> None:
        start, end = period_of(self.period, self._clock.now())
        if start != self.start:
            self.spent = self.total_calls = 0
            self.start, self.end = start, end
        self._ends_ns = int(self._clock.to_monotonic(self.end) * NS)

    def take(self, n: int, now: int) -> bool:
        if now >= self._ends_ns:
            self.follow()
        if self.spent + self.reserved + n > self.limit:
            return False
        self.reserved += n
        return True

    async def ask(self, n: int) -> bool:
        return False

    def settle(self, taken: int, used: int, now: int) -> None:
        if now >= self._ends_ns:
            self.follow()
        self.reserved -= taken
        self.spent += used
        self.total_calls += used > 0

    def left(self, now: int) -> int:
        if now >= self._ends_ns:
            self.follow()
        return self.limit - self.spent - self.reserved

    def wait_s(self, n: int, now: int) -> float | None:
        return self.reset_s(now)

    def reset_s(self, now: int) -> float:
        return max(0.0, (self._ends_ns - now) / NS)

    def resize(self, limit: int) -> None:
        self.limit = limit


class MeterMaker(Protocol):
    """Makes the meters of accounts."""

    def limit(self, account: Account, scope: str, period: str) -> Meter: ...
    def budget(self, account: Account, scope: str, period: str) -> MoneyMeter: ...


class LocalMeters:
    """Makes meters whose counts this process alone keeps."""

    def __init__(self, clock: SteadyClock) -> None:
        self._clock = clock

    def budget(self, account: Account, scope: str, period: str) -> MoneyMeter:
        return BudgetMeter(account, scope=scope, period=period, clock=self._clock)

    def limit(self, account: Account, scope: str, period: str) -> Meter:
        if account.kind == "parallel":
            return SlotMeter(account, scope=scope)
        return RateMeter(account, scope=scope, period=period)
