"""What both HTTP implementations share: deadlines without timers, refusals, checks of a head."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Protocol

from crossroads.gateway.errors import ApiError
from crossroads.gateway.serving.settings import FrontSettings

NEVER = math.inf
LINGER_S = 1.0  # for a client that is still sending to read why it was refused
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


class RefusedError(Exception):
    """A request that is not handed to the application."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Timed(Protocol):
    """A connection that is looked at now and then."""

    def check(self, now: float) -> None:
        """End the connection where a deadline has passed; ``now`` is of ``loop.time``."""
        ...


class Watchman:
    """Looks at all connections of an event loop a few times per limit.

    A timer per request would cost more than the rest of a connection's bookkeeping; a deadline is
    an attribute, and passes up to a quarter of the shortest limit (a second at most) late.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: FrontSettings) -> None:
        self.loop = loop
        shortest = min(settings.header_s, settings.body_s, settings.keep_alive_s, settings.write_s)
        self._interval = min(1.0, shortest / 4)
        self._watched: set[Timed] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Timed) -> None:
        self._watched.add(connection)
        if self._timer is None:
            self._timer = self.loop.call_later(self._interval, self._look)

    def discard(self, connection: Timed) -> None:
        self._watched.discard(connection)
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self.loop.call_later(self._interval, self._look)
        now = self.loop.time()
        for connection in list(self._watched):
            connection.check(now)


def refusal(status: int, message: str) -> bytes:
    """Return a whole response that says why and closes the connection."""
    error = ApiError(message, status=status)
    body = error.body
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: close\r\n\r\n%b" % (status, _REASONS[status], len(body), body)
    )


def without_upgrade(
    method: bytes, url: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """Return a head without its offer of another protocol, which a server may pass over.

    The parser takes what follows such an offer for the other protocol, the body included. Raises
    RefusedError for CONNECT, which is no offer.
    """
    if method == b"CONNECT":
        raise RefusedError(400, "This server is no proxy.")
    lines = [b"%b %b HTTP/%b\r\n" % (method, url, version.encode())]
    for name, value in headers:
        if name == b"connection":
            lines += [b"connection: close\r\n"] if b"close" in value.lower() else []
        elif name != b"upgrade":
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines) + b"\r\n"


def check_host(headers: Sequence[tuple[bytes, bytes]], version: str) -> None:
    """Refuse a request whose ``Host`` is missing, repeated or no host. Raises RefusedError."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise RefusedError(400, "Expected one Host header.")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise RefusedError(400, "The Host header is not a host name.")


def check_size(headers: Sequence[tuple[bytes, bytes]], limit: int) -> None:
    """Refuse headers of more than ``limit`` bytes. Raises RefusedError."""
    if sum(len(name) + len(value) + 4 for name, value in headers) > limit:
        raise RefusedError(431, f"The headers are larger than {limit} bytes; send fewer.")
