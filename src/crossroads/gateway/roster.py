"""Upstreams that outlive a reload: what two configurations want alike is started once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from crossroads.gateway.contracts import Upstream
from crossroads.prompts.pool import ModelCard


class Roster:
    """Counts who uses an upstream; the first user starts it, the last one closes it."""

    def __init__(self) -> None:
        self._known: dict[str, Upstream] = {}
        self._users: dict[Upstream, int] = {}
        self._changing = asyncio.Lock()  # what one closes another must not take for running

    def build(
        self, cards: Iterable[ModelCard], make: Callable[[ModelCard], Upstream], *, setting: str
    ) -> dict[str, Upstream]:
        """Return an upstream for each card: the running one where card and setting are the same.

        ``make`` builds a new one; ``setting`` is whatever else it depends on, as text. Raises what
        ``make`` raises.
        """
        found = {}
        for card in cards:
            key = f"{setting} {card.model_dump_json()}"
            known = self._known.get(key)
            if known is None or known not in self._users:
                known = self._known[key] = make(card)
            found[card.name] = known
        return found

    async def start(self, upstreams: Mapping[str, Upstream]) -> None:
        """Use these from now on; none is where one of them cannot start. Raises CrossroadsError."""
        async with self._changing:
            await self._start(upstreams)

    async def stop(self, upstreams: Mapping[str, Upstream]) -> None:
        """Use these no longer. Those that were never started are left alone."""
        async with self._changing:
            await self._stop(upstreams)

    async def _start(self, upstreams: Mapping[str, Upstream]) -> None:
        begun: dict[str, Upstream] = {}
        try:
            for name, upstream in upstreams.items():
                if upstream not in self._users:
                    await upstream.start()
                    self._users[upstream] = 0
                self._users[upstream] += 1
                begun[name] = upstream
        except BaseException:
            await self._stop(begun)
            raise

    async def _stop(self, upstreams: Mapping[str, Upstream]) -> None:
        for upstream in upstreams.values():
            if upstream not in self._users:
                continue
            self._users[upstream] -= 1
            if self._users[upstream] == 0:
                del self._users[upstream]
                self._known = {
                    k: known for k, known in self._known.items() if known is not upstream
                }
                await upstream.close()
