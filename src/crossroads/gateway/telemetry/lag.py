"""How late the event loop is: a timer that notes when it really ran."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class LagProbe:
    """Runs a timer every ``period`` seconds and reports its delay.

    Attributes
    ----------
    worst_ms : largest delay since `take_worst` was last called
    """

    def __init__(self, report: Callable[[float], None], *, period: float) -> None:
        self.worst_ms = 0.0
        self._report = report
        self._period = period
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._schedule(asyncio.get_running_loop())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take_worst(self) -> float:
        """Return ``worst_ms`` and begin anew."""
        worst, self.worst_ms = self.worst_ms, 0.0
        return worst

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._period
        self._timer = loop.call_at(self._due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        late = max(0.0, 1e3 * (loop.time() - self._due))
        self.worst_ms = max(self.worst_ms, late)
        self._report(late)
        self._schedule(loop)
