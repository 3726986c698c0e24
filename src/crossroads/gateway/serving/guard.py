"""What both HTTP implementations share: deadlines without timers, refusals, checks of a head."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Protocol

import httptools

from crossroads.gateway.errors import ApiError
from crossroads.gateway.serving.line import Line
from crossroads.gateway.serving.settings import FrontSettings

NEVER = math.inf
IDLE, HEAD, BODY = range(3)  # what is read: nothing, or one of a request's parts

_LINGER_S = 1.0  # for a client that is still sending to read why it was refused
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


class LimitedProtocol:
    """The limits of one connection, for a protocol whose requests httptools parses.

    The protocol keeps these attributes up to date as a request comes in.

    Attributes
    ----------
    settings, watchman : of all connections
    _reading : what of a request is due
    _is_long : whether the headers may be larger than is allowed
    _is_deaf : whether what comes is thrown away
    _num_head_bytes : of a head, but for its first part
    _offer : head of a request that offers to change the protocol, without that offer
    _line : tells whoever answers that the client left
    _deadline : of ``loop.time``, by which the client must have done what is due
    _unread_since : when the client ceased to read
    """

    __slots__ = (
        *("_deadline", "_is_deaf", "_is_long", "_line", "_num_head_bytes", "_offer", "_reading"),
        *("_unread_since", "loop", "parser", "transport"),
    )

    settings: ClassVar[FrontSettings] = FrontSettings()
    watchman: ClassVar[Watchman | None] = None
    loop: Any
    parser: Any
    transport: Any
    _reading: int
    _is_long: bool
    _is_deaf: bool
    _num_head_bytes: int
    _line: Line
    _offer: bytes
    _deadline: float
    _unread_since: float

    # --- what the protocol says ------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        """Whether a response is under way."""
        raise NotImplementedError

    @property
    def _keeps_waiting(self) -> bool:
        """Whether we do not read what the client sends."""
        raise NotImplementedError

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, unless another answer is under way, and read no further."""
        raise NotImplementedError

    def _read_on(self) -> None:
        """Read again, where reading was paused."""
        raise NotImplementedError

    # --- limits ----------------------------------------------------------------------------------

    def _reset_limits(self) -> None:
        self._line = Line()
        self._reading = IDLE
        self._is_long = self._is_deaf = False
        self._num_head_bytes = 0
        self._offer = b""
        self._deadline = self._unread_since = NEVER

    def _join(self, connections: Collection[Any]) -> None:
        """Be looked at from now on; ``connections`` are all there are, this one included."""
        kind = type(self)
        if kind.watchman is None or kind.watchman.loop is not self.loop:
            kind.watchman = Watchman(self.loop, self.settings)
        kind.watchman.add(self)
        self._deadline = self.loop.time() + self.settings.header_s
        if len(connections) > self.settings.max_connections:
            self._is_deaf = True
            self.transport.write(refusal(503, "Too many connections; try again soon."))
            self.transport.close()

    def _leave(self) -> None:
        """The connection is lost."""
        self._line.cut()
        watchman = type(self).watchman
        if watchman is not None:
            watchman.discard(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the connection is over for us."""
        if self._is_deaf:
            return
        limit = self.settings.header_bytes
        self._is_long = self._reading == HEAD or len(data) > limit
        self._num_head_bytes += len(data)  # none again where another head begins in it
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, RefusedError):
                self._refuse(cause.status, str(cause))
            else:
                self._refuse(400, "Invalid HTTP request.")
        if self._reading == HEAD and self._num_head_bytes > limit and not self._is_deaf:
            self._refuse(431, f"The headers are larger than {limit} bytes; send fewer.")

    def _go_on(self, rest: bytes) -> None:
        """Stay with HTTP/1.1 where the client offers another protocol, as it must expect."""
        self.parser = httptools.HttpRequestParser(self)
        self._reading = IDLE
        head, self._offer = self._offer, b""
        self.data_received(head + rest)

    def _check_head(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Refuse too many headers, or too large ones. Raises RefusedError."""
        if len(headers) > self.settings.header_count:
            raise RefusedError(431, f"Expected at most {self.settings.header_count} headers.")
        if self._is_long:
            check_size(headers, self.settings.header_bytes)

    def check(self, now: float) -> None:
        """End the connection where a deadline has passed."""
        if now - self._unread_since > self.settings.write_s:
            self.transport.abort()
        elif now >= self._deadline:
            self._expire(now)

    def _expire(self, now: float) -> None:
        if self._is_deaf:
            self.transport.abort()
        elif self._reading == IDLE:
            self.transport.close()
        elif self._keeps_waiting or (self._reading == HEAD and self._is_answering):
            self._deadline = now + self.settings.header_s  # we keep it waiting, not it us
        else:
            self._refuse(408, "The request did not arrive in time.")

    def _linger(self) -> None:
        """Stop writing, discard what still comes: closing at once would destroy the answer."""
        self._is_deaf = True
        self._deadline = self.loop.time() + _LINGER_S
        self._read_on()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


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
