"""The exact cache: the same request gets the same answer."""

from __future__ import annotations

from typing import Any

from crossroads.gateway.caches.answers import kept_from
from crossroads.gateway.caches.stores import Store
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Kept


class ExactCache:
    """Answers by the key of their request.

    An answer in another dialect than ``chat`` has a place of its own beside the one in ``chat``,
    which callers of every dialect can be given.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._num_hits = 0
        self._num_misses = 0

    async def get(self, key: bytes, call: Call) -> Kept | None:
        data = await self._store.get(key)
        kept = None if data is None else kept_from(data, call, kind="exact")
        if kept is None and call.dialect != "chat" and not call.is_stream:
            data = await self._store.get(_native(key, call))
            kept = None if data is None else kept_from(data, call, kind="exact")
        if kept is None:
            self._num_misses += 1
        else:
            self._num_hits += 1
        return kept

    def put(self, key: bytes, call: Call, dialect: str, data: bytes) -> None:
        self._store.put(key if dialect == "chat" else _native(key, call), data)

    def health(self) -> dict[str, Any]:
        return {"hits": self._num_hits, "misses": self._num_misses, **self._store.health()}

    async def close(self) -> None:
        await self._store.close()


def _native(key: bytes, call: Call) -> bytes:
    return key + call.dialect.encode()
