"""Bounds on asking: calls and tokens per minute of one model, and money of the whole collection."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

MINUTE = 60.0
_ROUNDING = 1e-9  # of a sum of many small costs, as a share


@dataclass(slots=True)
class Ticket:
    """One call that was let through: when, and the tokens it counts for."""

    at: float
    tokens: float


class RateLimiter:
    """Lets calls through so that no window of a minute holds more than the bounds.

    Parameters
    ----------
    requests, tokens : most per window, None for no bound
    period : length of the window in seconds
    clock, sleep : time in seconds and how to wait
    """

    def __init__(
        self,
        *,
        requests: int | None = None,
        tokens: int | None = None,
        period: float = MINUTE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._requests, self._tokens, self._period = requests, tokens, period
        self._clock, self._sleep = clock, sleep
        self._calls: deque[Ticket] = deque()
        self._paused_until = 0.0
        self._turn = asyncio.Lock()  # first come, first served

    async def admit(self, tokens: float) -> Ticket:
        """Wait until a call expected to take ``tokens`` may start.

        A call larger than the bound itself waits for an empty window.
        """
        async with self._turn:
            while (wait := self._seconds_to_wait(tokens)) > 0:
                await self._sleep(wait)
            ticket = Ticket(self._clock(), tokens)
            if self._requests is not None or self._tokens is not None:
                self._calls.append(ticket)
            return ticket

    def pause(self, seconds: float) -> None:
        """Let no call through for so long: the model asked to wait."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _seconds_to_wait(self, tokens: float) -> float:
        now = self._clock()
        while self._calls and self._calls[0].at <= now - self._period:
            self._calls.popleft()
        free_at = self._paused_until
        if self._requests is not None and len(self._calls) >= self._requests:
            free_at = max(free_at, self._calls[-self._requests].at + self._period)
        if self._tokens is not None:
            used = sum(call.tokens for call in self._calls)
            for call in self._calls:
                if used + tokens <= self._tokens:
                    break
                used -= call.tokens
                free_at = max(free_at, call.at + self._period)
        return free_at - now


class Budget:
    """Money that may be spent. Every call reserves its worst case before it starts.

    Parameters
    ----------
    limit : most, None for no bound
    spent : what earlier runs have spent of it
    """

    def __init__(self, limit: float | None, *, spent: float = 0.0) -> None:
        self.limit, self.spent = limit, spent
        self._reserved = 0.0
        self._changed = asyncio.Condition()

    async def reserve(self, worst: float) -> bool:
        """Return True when ``worst`` fits, waiting for calls in flight that may turn out cheaper;
        False when it does not fit although none is in flight."""
        if self.limit is None or worst == 0:
            return True
        async with self._changed:
            while self.spent + self._reserved + worst > self.limit * (1 + _ROUNDING):
                if self._reserved == 0:
                    return False
                await self._changed.wait()
            self._reserved += worst
            return True

    async def settle(self, worst: float, paid: float) -> None:
        """Turn a reservation into what was paid."""
        self.spent += paid
        if self.limit is None or worst == 0:
            return
        async with self._changed:
            self._reserved -= worst
            if abs(self._reserved) < _ROUNDING * self.limit:  # what rounding leaves of nothing
                self._reserved = 0.0
            self._changed.notify_all()
