"""Where answers are kept by key: in memory, or in Redis for all workers and replicas."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from crossroads.gateway.caches.link import RedisLink

_OVERHEAD = 300  # bytes of an entry beside the answer's own


class Store(Protocol):
    """Bytes by key, for a while. Never raises: a store that fails has nothing."""

    async def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes) -> None: ...

    def health(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...


class MemoryStore:
    """The least recently used entries go first when the bytes are used up.

    Parameters
    ----------
    max_bytes : of all values and their overhead
    ttl : seconds
    clock : seconds that never go back
    """

    def __init__(
        self, *, max_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._size = 0
        self._num_evicted = 0

    async def get(self, key: bytes) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, expires = entry
        if expires <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = (value, self._clock() + self._ttl)
        self._size += len(value) + _OVERHEAD
        while self._size > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._num_evicted += 1

    def health(self) -> dict[str, Any]:
        return {
            "store": "memory",
            "state": "ok",
            "entries": len(self._entries),
            "bytes": self._size,
            "evicted": self._num_evicted,
        }

    async def close(self) -> None:
        self._entries.clear()
        self._size = 0

    def _drop(self, key: bytes) -> None:
        value, _ = self._entries.pop(key)
        self._size -= len(value) + _OVERHEAD


class RedisStore:
    """Values in Redis, which forgets them after ``ttl`` seconds."""

    def __init__(self, link: RedisLink, *, namespace: str, ttl: float) -> None:
        self._link = link
        self._prefix = f"{namespace}:answer:1:".encode()
        self._ttl_ms = max(1, round(ttl * 1000))

    async def get(self, key: bytes) -> bytes | None:
        found = await self._link.ask(b"GET", self._prefix + key)
        return found if isinstance(found, bytes) else None

    def put(self, key: bytes, value: bytes) -> None:
        self._link.tell(b"SET", self._prefix + key, value, b"PX", self._ttl_ms)

    def health(self) -> dict[str, Any]:
        return {"store": "redis", **self._link.health()}

    async def close(self) -> None:
        await self._link.close()
