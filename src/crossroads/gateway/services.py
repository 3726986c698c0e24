"""Everything one configuration compiles to: what a request needs on its way, as one snapshot.

A reload builds a new snapshot beside the old one. A request keeps the snapshot it began with; the
old one is closed when its last request is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from crossroads.gateway.call import Call, Client
from crossroads.gateway.contracts import (
    Cache,
    Engine,
    Governor,
    Ledger,
    Policies,
    Surface,
    Telemetry,
    Upstream,
    Usage,
)
from crossroads.gateway.exchange import Exchange
from crossroads.gateway.roster import Roster


class Prices(Protocol):
    """What models cost, in USD."""

    def cost(self, model: str, usage: Usage) -> float: ...

    def upper(self, model: str, input_tokens: int, max_output_tokens: int | None) -> float:
        """Return a cost that a call will hardly exceed."""
        ...


class Extras(Protocol):
    """Paths that belong to an API beside its main one."""

    async def answer(self, client: Client, exchange: Exchange, path: str) -> bool:
        """Answer a request; return whether the path is one of these. Raises ApiError."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Keeping:
    """What of a call the ledger keeps beyond the facts."""

    text: bool = False
    answers: bool = False
    features: bool = False


@dataclass(kw_only=True, eq=False)
class Services:
    """One snapshot.

    Attributes
    ----------
    surfaces : by path below ``/v1``
    ping_s : seconds of silence within a stream, after which its client gets a sign of life
    is_hedging : whether any call may ask a second model beside a slow first one
    deciding_headers : that the rules of policies go by, in lower case
    roster : starts and closes the upstreams
    prepare : completes a call of ``responses`` with its earlier turns. Raises ApiError 400.
    extras : endpoints that the surfaces bring along, asked after all others
    health : what ``compose_health`` says
    metrics : Prometheus text; None where nobody counts
    remember : keeps a judgement sent to ``POST /v1/feedback``; returns it as kept
    recall : the ledger's record of a client's own call, by decision id; None where it has none
    closers : awaited in order at the end, before the upstreams close
    """

    surfaces: Mapping[str, Surface]
    upstreams: Mapping[str, Upstream]
    policies: Policies
    engine: Engine
    governor: Governor
    prices: Prices
    telemetry: Telemetry
    cache: Cache | None = None
    ledger: Ledger | None = None
    keeping: Keeping = field(default_factory=Keeping)
    body_limit: int = 8 << 20
    ping_s: float | None = None
    is_hedging: bool = False
    deciding_headers: frozenset[bytes] = frozenset()
    roster: Roster = field(default_factory=Roster)
    prepare: Callable[[Call], Awaitable[None]] | None = None
    extras: Extras | None = None
    health: Callable[[], dict[str, Any]] = lambda: {"status": "ok", "parts": {}}
    metrics: Callable[[], Awaitable[bytes]] | None = None
    remember: Callable[[Client, bytes], Awaitable[dict[str, Any]]] | None = None
    recall: Callable[[Client, str], Awaitable[dict[str, Any] | None]] | None = None
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    _num_running: int = field(default=0, init=False)
    _is_retired: bool = field(default=False, init=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def start(self) -> None:
        """Start every upstream; none is left running where one cannot. Raises CrossroadsError."""
        await self.roster.start(self.upstreams)

    def enter(self) -> None:
        """Count a request in."""
        self._num_running += 1

    def leave(self) -> None:
        """Count a request out."""
        self._num_running -= 1
        if self._is_retired and self._num_running == 0:
            self._idle.set()

    async def until_idle(self) -> None:
        """Return when the last request is over, or at ``hurry``. No new one may enter."""
        self._is_retired = True
        if self._num_running:
            await self._idle.wait()

    def hurry(self) -> None:
        """Let ``until_idle`` wait no longer."""
        self._idle.set()

    async def close(self) -> None:
        for close in self.closers:
            await close()
        self.closers.clear()
        await self.roster.stop(self.upstreams)
