"""Idempotency keys: a request that is sent twice is answered once, and both get that answer.

A client that lost the connection repeats its request with the same ``Idempotency-Key``. While the
first one still runs the second waits for it; afterwards it gets the same bytes again. Keys are
per client, and held in this process only: a repetition that meets another worker or another replica
is answered, and billed, anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from crossroads.gateway.engine.breaker import Clock
from crossroads.gateway.engine.settings import IdempotencySettings
from crossroads.gateway.errors import ApiError, Headers

_MAX_KEY = 255  # characters, as for the vendors' own APIs
_MIB = 1 << 20
_Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer as it went over the wire: JSON, or the whole event stream."""

    status: int
    headers: Headers
    body: bytes


class Slot:
    """The place of one request among those of the same key.

    Attributes
    ----------
    earlier : the answer to give; None where this request is to be answered itself
    """

    __slots__ = ("earlier", "kept")

    def __init__(self, earlier: Response | None = None) -> None:
        self.earlier = earlier
        self.kept: Response | None = None

    def keep(self, status: int, headers: Headers, body: bytes) -> None:
        """Give this answer to whoever repeats the request. Only for whole answers.

        Other statuses than 2xx are not kept: what failed may succeed when it is repeated.
        """
        if 200 <= status < 300:
            # A copy of the exact size: what orjson writes may hold 8 KiB for a few bytes.
            self.kept = Response(status, list(headers), bytes(memoryview(body)))


@dataclass(slots=True)
class _Entry:
    digest: bytes
    done: asyncio.Future[None] | None  # while the first request runs
    response: Response | None = None
    until: float = 0.0

    @property
    def size(self) -> int:
        return 0 if self.response is None else len(self.response.body)


class Idempotency:
    """Remembers answers by client and key.

    Parameters
    ----------
    settings : how long, and how many
    clock : monotonic seconds
    """

    def __init__(
        self, settings: IdempotencySettings | None = None, *, clock: Clock = time.monotonic
    ) -> None:
        self._settings = settings or IdempotencySettings()
        self._clock = clock
        self._entries: OrderedDict[_Name, _Entry] = OrderedDict()  # finished ones, oldest first
        self._running: dict[_Name, _Entry] = {}
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all answers kept."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._entries)

    @asynccontextmanager
    async def enter(self, client_id: str, key: str, digest: bytes) -> AsyncIterator[Slot]:
        """Hold the place of one request while it is answered.

        ``digest`` is that of the request (``digest_of``). Raises ApiError 400 for an unusable key,
        422 for a key used with another request, 409 where the first one runs for too long.
        """
        if not 0 < len(key) <= _MAX_KEY:
            raise ApiError(
                f"The header Idempotency-Key must have 1 to {_MAX_KEY} characters, got {len(key)}.",
                code="invalid_idempotency_key",
            )
        name = (client_id, key)
        earlier = await self._earlier(name, digest)
        if earlier is not None:
            yield Slot(earlier)
            return
        entry = _Entry(digest, asyncio.get_running_loop().create_future())
        self._running[name] = entry
        slot = Slot()
        try:
            yield slot
        finally:
            del self._running[name]
            self._store(name, entry, slot.kept)
            assert entry.done is not None
            entry.done.set_result(None)
            entry.done = None

    async def _earlier(self, name: _Name, digest: bytes) -> Response | None:
        """Return the answer kept, or None: then the caller is the one to run."""
        give_up = self._clock() + self._settings.wait_s
        while True:
            self._forget_old()
            entry = self._entries.get(name) or self._running.get(name)
            if entry is None:
                return None
            if entry.digest != digest:
                raise ApiError(
                    "This Idempotency-Key was used with another request; use a new key.",
                    status=422,
                    code="idempotency_key_reused",
                )
            if entry.done is None:
                return entry.response
            try:
                async with asyncio.timeout(max(0.0, give_up - self._clock())):
                    await asyncio.shield(entry.done)
            except TimeoutError:
                raise ApiError(
                    "The first request with this Idempotency-Key is still running.",
                    status=409,
                    code="idempotency_key_in_use",
                    headers=[(b"retry-after", b"1")],
                ) from None

    def _store(self, name: _Name, entry: _Entry, response: Response | None) -> None:
        settings = self._settings
        if response is None or len(response.body) > settings.max_answer_mib * _MIB:
            return
        entry.response = response
        entry.until = self._clock() + settings.keep_s
        self._entries[name] = entry
        self._num_bytes += entry.size
        while len(self._entries) > settings.max_entries or (
            self._num_bytes > settings.max_mib * _MIB
        ):
            self._forget(next(iter(self._entries)))

    def _forget_old(self) -> None:
        """All are kept for the same time, so the oldest are the first to go."""
        now = self._clock()
        while self._entries:
            name, entry = next(iter(self._entries.items()))
            if entry.until > now:
                return
            self._forget(name)

    def _forget(self, name: _Name) -> None:
        self._num_bytes -= self._entries.pop(name).size


def digest_of(path: str, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return what tells requests apart that were sent with the same key.

    ``headers`` are those that have a say in the answer, in any order.
    """
    digest = hashlib.blake2b(body, digest_size=16, key=path.encode()[:64])
    for pair in sorted(headers):
        for part in pair:
            digest.update(len(part).to_bytes(4) + part)
    return digest.digest()
