"""Responses kept for a while, so that they can be fetched and continued."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import orjson

from crossroads.gateway.call import Body


@dataclass(frozen=True, slots=True)
class Stored:
    """A response and the items it answered, those of earlier turns first."""

    response: Body
    items: list[Body]

    def to_bytes(self) -> bytes:
        return orjson.dumps([self.response, self.items])

    @classmethod
    def from_bytes(cls, raw: bytes) -> Stored:
        response, items = orjson.loads(raw)
        return cls(response, items)


class ResponsesStore(Protocol):
    """Keeps responses by owner and id: one client never sees another's."""

    def put(self, owner: str, stored: Stored) -> None:
        """Keep a response, soon; returns at once and never raises."""
        ...

    async def get(self, owner: str, id: str) -> Stored | None:
        """Return a response; None where there is none, or not any more."""
        ...

    async def delete(self, owner: str, id: str) -> bool:
        """Forget a response; return whether there was one."""
        ...

    async def close(self) -> None: ...


class MemoryStore:
    """Keeps responses in this process: the least recently used ones go first.

    Parameters
    ----------
    max_bytes : of all responses together; one that is larger is not kept
    ttl_s : seconds a response is kept
    clock : monotonic, in seconds
    """

    def __init__(
        self, *, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl = ttl_s
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], tuple[float, bytes]] = OrderedDict()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all responses kept."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, owner: str, stored: Stored) -> None:
        """Keep a response."""
        key = (owner, str(stored.response.get("id")))
        raw = bytes(memoryview(stored.to_bytes()))  # exact: orjson's own hold up to 8 KiB for less
        self._drop(key)
        if len(raw) > self._max_bytes:
            return
        self._entries[key] = (self._clock() + self._ttl, raw)
        self._num_bytes += len(raw)
        while self._num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    async def get(self, owner: str, id: str) -> Stored | None:
        """Return a response; None where there is none, or not any more."""
        key = (owner, id)
        expires, raw = self._entries.get(key, (0.0, b""))
        if not raw:
            return None
        if expires <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return Stored.from_bytes(raw)

    async def delete(self, owner: str, id: str) -> bool:
        """Forget a response; return whether there was one."""
        is_there = await self.get(owner, id) is not None
        self._drop((owner, id))
        return is_there

    async def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._num_bytes = 0

    def _drop(self, key: tuple[str, str]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._num_bytes -= len(entry[1])
