"""Entries of semantic caches, shared by all workers and replicas through one stream in Redis.

Each process searches its own ring; what others add arrives over the stream, newest last. A process
that starts reads what the stream still holds. Without Redis each process has its own entries only.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossroads.gateway.caches.link import RedisLink
from crossroads.gateway.caches.ring import Ring
from crossroads.models.encoders import Float32

_PAGE = 500  # entries read at once
_PAUSE_S = 0.5  # between two looks at the stream
_LONGEST_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer: the group it may be given in, the vector of its prompt, the answer packed."""

    group: bytes
    vector: Float32
    data: bytes


class RedisFeed:
    """Publishes entries, and adds those of others to a ring.

    Parameters
    ----------
    link : to Redis
    namespace, encoder : processes that agree on both share a stream
    length : entries the stream holds, about
    """

    def __init__(self, link: RedisLink, *, namespace: str, encoder: str, length: int) -> None:
        self._link = link
        self._key = f"{namespace}:semantic:2:{encoder}".encode()
        self._length = length
        self._me = secrets.token_bytes(8)
        self._last = b""
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def publish(self, entry: Entry, *, ttl: float) -> None:
        """Share an entry soon; returns at once."""
        self._link.tell(
            *(b"XADD", self._key, b"MAXLEN", b"~", self._length, b"*"),
            *(b"by", self._me, b"group", entry.group, b"until", repr(time.time() + ttl).encode()),
            *(b"vector", entry.vector.astype("<f2").tobytes(), b"data", entry.data),
        )

    def follow(self, ring: Ring) -> None:
        """Start to add the entries of others to ``ring``, where that has not begun."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow(ring))

    def health(self) -> dict[str, Any]:
        return {"store": "redis", **self._link.health()}

    async def close(self) -> None:
        self._closing.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_LONGEST_CLOSE_S)
            self._task.cancel()
            self._task = None
        await self._link.close()

    async def _follow(self, ring: Ring) -> None:
        while not self._closing.is_set():
            after = b"(" + self._last if self._last else b"-"
            page = await self._link.ask(b"XRANGE", self._key, after, b"+", b"COUNT", _PAGE)
            for serial, fields in page or ():
                self._last = serial
                self._add(ring, fields)
            if not page or len(page) < _PAGE:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _PAUSE_S)

    def _add(self, ring: Ring, flat: Any) -> None:
        # Clients differ in whether they pair names and values.
        fields = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=False))
        if fields.get(b"by") == self._me:
            return
        try:
            ttl = float(fields[b"until"]) - time.time()
            vector = np.frombuffer(fields[b"vector"], dtype="<f2").astype(np.float32)
            ring.add(fields[b"group"], vector, fields[b"data"], ttl=ttl)
        except (KeyError, ValueError):
            return  # written by another version, or with another encoder
