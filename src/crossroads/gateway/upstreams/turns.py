"""The place and the time of a call to a model that is asked without a connection of ours."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams.failures import Failures
from crossroads.gateway.upstreams.gate import Gate
from crossroads.gateway.upstreams.settings import UpstreamSettings
from crossroads.prompts.pool import ModelCard


class Turns:
    """Lets calls in, bounds their time, and counts it.

    Parameters
    ----------
    card : whose ``max_parallel`` bounds calls at a time
    total : seconds of a call, waiting for a place included
    settings : how many may wait
    failures : makes the errors
    """

    def __init__(
        self, card: ModelCard, *, total: float, settings: UpstreamSettings, failures: Failures
    ) -> None:
        self._total = total
        limit = card.max_parallel
        self.gate = (
            Gate(limit, max_waiting=settings.max_waiting, failures=failures) if limit else None
        )

    @asynccontextmanager
    async def take(self, order: Order) -> AsyncGenerator[float, None]:
        """Wait for a place; gives the ``time.monotonic`` by which the answer must be whole.

        Raises ExpertError where no place was had.
        """
        deadline = time.monotonic() + self._total
        if order.deadline is not None:
            deadline = min(deadline, order.deadline)
        if self.gate is not None:
            await self.gate.enter(order.phases, deadline)
        began = time.perf_counter()
        try:
            yield deadline
        finally:
            seconds = time.perf_counter() - began
            order.phases.upstream += seconds
            if self.gate is not None:
                self.gate.leave(seconds)
