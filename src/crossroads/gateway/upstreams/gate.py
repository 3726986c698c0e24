"""A bound on calls at a time, with a fair and bounded queue in front."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

from crossroads.gateway.call import Phases
from crossroads.gateway.upstreams.failures import Failures
from crossroads.prompts.experts.base import ExpertError

_SMOOTHING = 0.2  # weight of the newest call in the mean duration


class Gate:
    """Lets ``limit`` calls in at a time; the others wait in the order they came.

    Parameters
    ----------
    limit : calls at a time
    max_waiting : calls that may wait
    failures : makes the errors
    """

    __slots__ = ("_failures", "_mean_s", "_waiting", "limit", "max_waiting", "num_inside")

    def __init__(self, limit: int, *, max_waiting: int, failures: Failures) -> None:
        self.limit = limit
        self.max_waiting = max_waiting
        self.num_inside = 0
        self._failures = failures
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_s = 1.0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, phases: Phases, deadline: float) -> None:
        """Wait for a place; ``leave`` gives it back.

        The time counts as ``queue``. Raises ExpertError: 503 with ``retry_after`` where no place to
        wait is left, 504 when ``deadline`` (by ``time.monotonic``) comes first.
        """
        if self.num_inside < self.limit and not self._waiting:
            self.num_inside += 1
            return
        if len(self._waiting) >= self.max_waiting:
            raise self._full()
        began = time.perf_counter()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self._pass_on()  # it was given to us while we left
            else:
                with suppress(ValueError):  # whoever left meanwhile has skipped it
                    self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise self._late() from error
            raise
        finally:
            phases.queue += time.perf_counter() - began

    def leave(self, seconds: float) -> None:
        """Give the place to who waits longest; ``seconds``: how long the call took."""
        self._mean_s += _SMOOTHING * (seconds - self._mean_s)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.num_inside -= 1

    def _full(self) -> ExpertError:
        ahead = (len(self._waiting) + 1) / self.limit
        return self._failures.error(
            f"{self.limit} calls are running and {len(self._waiting)} waiting",
            status=503,
            code="upstream_queue_full",
            retry_after=max(1.0, round(self._mean_s * ahead)),
        )

    def _late(self) -> ExpertError:
        return self._failures.error(
            f"none of {self.limit} parallel calls ended in time",
            status=504,
            code="upstream_timeout",
        )
