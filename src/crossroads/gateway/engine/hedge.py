"""Hedged requests: a second model is asked when the first is slow; the first answer wins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from crossroads.gateway.engine.settings import HedgeSettings
from crossroads.prompts.experts.base import ExpertError

T = TypeVar("T")


class HedgeBudget:
    """Keeps hedges to a share of the calls: each call earns ``max_share`` of a hedge.

    At most ``burst`` hedges are saved up, so that a slow minute after a quiet hour does not double
    the load.
    """

    __slots__ = ("_max_share", "_saved", "_settings")

    def __init__(self, settings: HedgeSettings) -> None:
        self._settings = settings
        self._saved = 1.0

    def earn(self) -> None:
        """A call that may be hedged came in."""
        self._saved = min(self._saved + self._settings.max_share, float(self._settings.burst))

    def spend(self) -> bool:
        """Take one hedge; False when there is none left."""
        if self._saved < 1.0 or not self._settings.max_share:
            return False
        self._saved -= 1.0
        return True

    def refund(self) -> None:
        """A hedge taken was not made."""
        self._saved += 1.0


async def race(
    first: Coroutine[Any, Any, T],
    second: Callable[[], Coroutine[Any, Any, T] | None],
    *,
    after_s: float,
    discard: Callable[[T], Awaitable[None]],
) -> T:
    """Return what ``first`` gives, or ``second``, which is begun if that takes ``after_s`` seconds.

    The loser is cancelled; ``discard`` gets what it gave in the same moment as the winner. Raises
    the ExpertError of the one that failed last when both do. ``second`` may return None: no hedge.
    """
    tasks = [asyncio.create_task(first)]
    try:
        done, _ = await asyncio.wait(tasks, timeout=after_s)
        other = None if done else second()
        if other is not None:
            tasks.append(asyncio.create_task(other))
        winner = await _winner(tasks)
        await _dismiss([task for task in tasks if task is not winner], discard)
    except BaseException:  # also where a loser was still at its end: nobody gets what was won
        await _dismiss(tasks, discard)
        raise
    return winner.result()


async def _winner(tasks: list[asyncio.Task[T]]) -> asyncio.Task[T]:
    """Return the first task that gave a result, or the last one that failed."""
    pending = set(tasks)
    failed = tasks[0]
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and not task.cancelled() and task.exception() is None:
                return task
        failed = next(iter(done))
    return failed


async def _dismiss(tasks: list[asyncio.Task[T]], discard: Callable[[T], Awaitable[None]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(outcome, BaseException):
            await discard(outcome)
        elif not isinstance(outcome, ExpertError | asyncio.CancelledError):
            raise outcome
