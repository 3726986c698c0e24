"""Experts of this process (``local:`` endpoints) as upstreams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from crossroads.gateway.call import Body, Dialect, Event
from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams.failures import Failures
from crossroads.gateway.upstreams.settings import UpstreamSettings
from crossroads.gateway.upstreams.turns import Turns
from crossroads.prompts.experts.base import Expert
from crossroads.prompts.pool import ModelCard

if TYPE_CHECKING:
    from crossroads.core.http.timeouts import Timeouts

_CHAT: frozenset[Dialect] = frozenset({"chat"})


class LocalUpstream:
    """An expert of this process. Obeys ``crossroads.gateway.contracts.Upstream``.

    Of the timeouts only ``total`` applies, which waiting for a place counts for.

    Parameters
    ----------
    expert : answers
    card : the model
    timeouts : seconds per phase; those of the card go before
    settings : bounds of all upstreams
    """

    def __init__(
        self, expert: Expert, card: ModelCard, *, timeouts: Timeouts, settings: UpstreamSettings
    ) -> None:
        self._expert = expert
        total = card.timeouts.get("total", timeouts.total)
        self._failures = Failures(f"model {card.name!r} in this process")
        self._turns = Turns(card, total=total, settings=settings, failures=self._failures)
        self.gate = self._turns.gate

    @property
    def name(self) -> str:
        return self._expert.name

    @property
    def speaks(self) -> frozenset[Dialect]:
        return _CHAT

    async def start(self) -> None:
        await self._expert.start()

    async def close(self) -> None:
        await self._expert.close()

    async def complete(self, order: Order) -> Body:
        """Return the whole answer. Raises ExpertError."""
        body = {**order.body}
        for name in ("stream", "stream_options"):
            body.pop(name, None)
        async with self._turns.take(order) as deadline:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await self._expert.complete(body)
            except TimeoutError as error:
                raise self._failures.late() from error

    async def stream(self, order: Order) -> AsyncGenerator[list[Event], None]:
        """Yield chunks one by one. Raises ExpertError."""
        options = order.body.get("stream_options")
        options = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        body: dict[str, Any] = {**order.body, "stream": True, "stream_options": options}
        async with self._turns.take(order) as deadline:
            try:
                async with aclosing(self._expert.stream(body)) as chunks:
                    while True:
                        # No timeout may span the yield: it would cancel whoever reads.
                        async with asyncio.timeout(deadline - time.monotonic()):
                            chunk = await anext(chunks, None)
                        if chunk is None:
                            return
                        yield [chunk]
            except TimeoutError as error:
                raise self._failures.late() from error
