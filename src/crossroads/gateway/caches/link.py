"""One Redis for caches: asked with a time limit, told without waiting, left alone when it fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from crossroads.gateway.remote import connect_redis, failures, safe_url

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

_LONGEST_QUEUE = 2_000  # commands not sent yet; further ones are dropped and counted
_BATCH = 100  # commands sent at once
_LONGEST_CLOSE_S = 2.0


class RedisLink:
    """A connection that may be gone. Nothing raises; what fails is a miss.

    After a failure nothing is asked for ``retry`` seconds; then one command tries again.

    Parameters
    ----------
    url : of Redis
    timeout : seconds to wait for an answer
    retry : seconds without a try after a failure
    """

    def __init__(self, url: str, *, timeout: float = 0.1, retry: float = 5.0) -> None:
        self._url = url
        self._client: Redis = connect_redis(url, connect_timeout=timeout, timeout=timeout)
        self._failures = failures()
        self._retry = retry
        self._closed_until = 0.0
        self._num_failures = 0
        self._num_dropped = 0
        self._queue: deque[tuple[Any, ...]] = deque()
        self._wake = asyncio.Event()
        self._is_closing = False
        self._writer: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether the last command was answered."""
        return self._closed_until == 0.0

    async def ask(self, *command: Any) -> Any:
        """Return the answer to a command; None where there is none."""
        if not self.is_up and not self._may_try():
            return None
        try:
            send: Callable[..., Awaitable[Any]] = self._client.execute_command
            answer = await send(*command)
        except self._failures as error:
            self._fail(error)
            return None
        self._recover()
        return answer

    def tell(self, *command: Any) -> None:
        """Send a command soon, answered or not; returns at once."""
        if len(self._queue) >= _LONGEST_QUEUE or self._is_closing:
            self._num_dropped += 1
            return
        self._queue.append(command)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())
        self._wake.set()

    async def close(self) -> None:
        """Send what is waiting, as far as Redis takes it, and disconnect."""
        self._is_closing = True
        self._wake.set()
        if self._writer is not None:
            # Not by cancelling alone: a client may lose a cancellation that meets its answer.
            await asyncio.wait({self._writer}, timeout=_LONGEST_CLOSE_S)
            self._writer.cancel()
            self._writer = None
        with suppress(*self._failures):
            await self._client.aclose()

    def health(self) -> dict[str, Any]:
        return {
            "state": "ok" if self.is_up else "unreachable",
            "failures": self._num_failures,
            "waiting": len(self._queue),
            "dropped": self._num_dropped,
        }

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                if not self.is_up and not self._may_try():
                    self._num_dropped += len(self._queue)
                    self._queue.clear()
                    break
                await self._send_batch()
            if self._is_closing:
                return

    async def _send_batch(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                for command in batch:
                    pipeline.execute_command(*command)
                await pipeline.execute()
        except self._failures as error:
            self._num_dropped += len(batch)
            self._fail(error)
        else:
            self._recover()

    def _may_try(self) -> bool:
        """Whether it is time for another try; if so, nobody else tries at the same time."""
        now = time.monotonic()
        if now < self._closed_until:
            return False
        self._closed_until = now + self._retry
        return True

    def _fail(self, error: Exception) -> None:
        self._num_failures += 1
        if self.is_up:
            logger.warning("cache: %s failed (%s); going on without it", safe_url(self._url), error)
        self._closed_until = time.monotonic() + self._retry

    def _recover(self) -> None:
        if not self.is_up:
            logger.warning("cache: %s answers again", safe_url(self._url))
            self._closed_until = 0.0
