"""How late the event loop is: a timer that notes when it really ran."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_HALF_MINUTE = 30.0


class LagProbe:
    """Runs a timer every ``period`` seconds and reports its delay in milliseconds."""

    def __init__(self, report: Callable[[float], None], *, period: float) -> None:
        self._report = report
        self._period = period
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._worst = [0.0, 0.0]  # of this half minute, and of the one before
        self._turns_at = 0.0

    @property
    def worst_ms(self) -> float:
        """Largest delay of the last half minute to minute."""
        return max(self._worst)

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._schedule(asyncio.get_running_loop())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._period
        self._timer = loop.call_at(self._due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        late = max(0.0, 1e3 * (now - self._due))
        if now >= self._turns_at:
            self._turns_at = now + _HALF_MINUTE
            self._worst = [0.0, self._worst[0]]
        self._worst[0] = max(self._worst[0], late)
        self._report(late)
        self._schedule(loop)
