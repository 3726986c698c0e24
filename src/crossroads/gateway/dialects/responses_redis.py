"""Responses kept in Redis or Valkey, for several workers or hosts."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Any

from crossroads.core.errors import MissingExtraError
from crossroads.gateway.dialects.responses_store import Stored
from crossroads.gateway.errors import ApiError

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

_MOST_PENDING = 1_000  # writes under way; a server that hangs must not fill this process


class RedisStore:
    """Keeps responses in a server that every worker reaches; the server drops what is too old.

    Without the server nothing is kept, and asking for a response is a 503.

    Parameters
    ----------
    client : ``redis.asyncio`` client, which this store closes
    ttl_s : seconds a response is kept
    max_bytes : of one response; a larger one is not kept, nor any while 1,000 wait to be written
    prefix : of every key
    """

    def __init__(
        self,
        client: Redis,
        *,
        ttl_s: float,
        max_bytes: int,
        prefix: str = "crossroads:response:",
    ) -> None:
        self._client = client
        self._ttl_ms = max(1, round(ttl_s * 1e3))
        self._max_bytes = max_bytes
        self._prefix = prefix
        self._writes: set[asyncio.Task[None]] = set()
        self._is_down = False  # so that an outage is one line in the log

    @classmethod
    def from_url(
        cls, url: str, *, ttl_s: float, max_bytes: int, timeout_s: float = 1.0
    ) -> RedisStore:
        """Return a store at ``redis://``, ``rediss://`` or ``unix://``. Connects when used.

        ``timeout_s`` bounds each of at most two tries. Raises MissingExtraError without the
        library.
        """
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise MissingExtraError("redis", extra="redis") from None
        client = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
        )
        return cls(client, ttl_s=ttl_s, max_bytes=max_bytes)

    def put(self, owner: str, stored: Stored) -> None:
        """Keep a response, soon."""
        raw = stored.to_bytes()
        if len(raw) > self._max_bytes or len(self._writes) >= _MOST_PENDING:
            return
        key = self._key(owner, str(stored.response.get("id")))
        task = asyncio.get_running_loop().create_task(self._write(key, raw))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def get(self, owner: str, id: str) -> Stored | None:
        """Return a response; None where there is none. Raises ApiError 503."""
        from redis.exceptions import RedisError

        await self._settle()
        try:
            raw: Any = await self._client.get(self._key(owner, id))
        except (RedisError, OSError) as error:
            raise _unavailable() from error
        return None if raw is None else Stored.from_bytes(raw)

    async def delete(self, owner: str, id: str) -> bool:
        """Forget a response; return whether there was one. Raises ApiError 503."""
        from redis.exceptions import RedisError

        await self._settle()
        try:
            return bool(await self._client.delete(self._key(owner, id)))
        except (RedisError, OSError) as error:
            raise _unavailable() from error

    async def close(self) -> None:
        """Finish what is being written and disconnect."""
        await self._settle()
        await self._client.aclose()

    async def _settle(self) -> None:
        """Wait for writes: a client may continue an answer it has just got."""
        if self._writes:
            await asyncio.wait(set(self._writes))

    async def _write(self, key: bytes, raw: bytes) -> None:
        from redis.exceptions import RedisError

        try:
            await self._client.set(key, raw, px=self._ttl_ms)
        except (RedisError, OSError) as error:
            if not self._is_down:
                logger.warning("Responses are not kept while Redis is unreachable: %s", error)
            self._is_down = True
        else:
            self._is_down = False

    def _key(self, owner: str, id: str) -> bytes:
        """Return a key of fixed length; the parts cannot run into each other."""
        digest = hashlib.blake2b(digest_size=20)
        for part in (owner.encode("utf-8", "surrogatepass"), id.encode("utf-8", "surrogatepass")):
            digest.update(len(part).to_bytes(8, "little") + part)
        return self._prefix.encode() + digest.hexdigest().encode()


def _unavailable() -> ApiError:
    return ApiError(
        "Stored responses cannot be reached just now; try again.",
        status=503,
        code="store_unavailable",
    )
