"""Redis or Valkey, shared by workers and replicas: one way to connect, one kind of error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossroads.core.errors import InputError, MissingExtraError, UnavailableError
from crossroads.gateway.redaction import safe_url

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["SCHEMES", "connect_redis", "failures", "ping_redis", "safe_url", "unavailable"]

SCHEMES = ("redis", "rediss", "unix")

_CONNECT_S = 1.0  # a server that is there answers within milliseconds
_ANSWER_S = 1.0


def connect_redis(
    url: str, *, connect_timeout: float = _CONNECT_S, timeout: float = _ANSWER_S
) -> Redis:
    """Return a client that connects at its first command; ``await client.aclose()`` ends it.

    Commands are never sent twice by themselves: a script that was lost on the way may have run.

    Raises InputError for another URL, MissingExtraError without the ``redis`` extra.

    Parameters
    ----------
    url : ``redis://[user:password@]host[:port][/db]``, ``rediss://`` for TLS, ``unix://path``
    connect_timeout, timeout : seconds to connect, and to wait for an answer
    """
    if url.partition("://")[0] not in SCHEMES:
        raise InputError(
            f"store {safe_url(url)!r}: expected redis://host:port, rediss://host:port or "
            "unix:///path/to/socket"
        )
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise MissingExtraError("redis", extra="redis") from error
    try:
        client: Redis = Redis.from_url(
            url,
            socket_connect_timeout=connect_timeout,
            socket_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        # What the library says quotes parts of the URL, which may be parts of the password.
        raise InputError(
            f"store {safe_url(url)!r}: not a URL; write / # ? @ of a password as %2F %23 %3F %40"
        ) from None
    return client


async def ping_redis(url: str) -> None:
    """Ask whether a server is there. Raises UnavailableError, and what ``connect_redis`` does."""
    client = connect_redis(url)
    try:
        await client.ping()
    except failures() as error:
        raise unavailable(url, error) from error
    finally:
        await client.aclose()


def failures() -> tuple[type[Exception], ...]:
    """Return what a command raises when the server cannot be reached or does not answer."""
    from redis.exceptions import RedisError

    return (RedisError, OSError, TimeoutError)


def unavailable(url: str, error: Exception) -> UnavailableError:
    """Return the error that tells which server failed, without its password."""
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return UnavailableError(
        f"Redis at {safe_url(url)}: {reason}; start it, or correct the URL in the configuration"
    )
