"""One request and its response, as the ASGI application sees them."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

Message = MutableMapping[str, Any]
_Headers = list[tuple[bytes, bytes]]

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_BODILESS = frozenset({204, 304})
_line = b": ".join  # of a name and a value


class Connection(Protocol):
    """What a cycle needs of its connection."""

    @property
    def default_headers(self) -> _Headers: ...

    @property
    def is_choked(self) -> bool: ...

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...

    def body_taken(self) -> None: ...

    def response_over(self, cycle: Cycle) -> None: ...


class Cycle:
    """Hands the request's body to the application and writes its response.

    Attributes
    ----------
    keep_alive : whether the connection may serve another request after this one
    is_whole : whether the request's body has arrived
    is_sent : whether bytes of the response were written
    is_over : whether all were
    is_disconnected : whether nobody is there to read them
    task : in which the application runs
    """

    __slots__ = (
        *("_body", "_chunked", "_connection", "_event", "_head", "_is_started", "_is_taken"),
        *("_num_left", "_size", "is_disconnected", "is_over", "is_sent", "is_whole"),
        *("_wants_100", "keep_alive", "scope", "task"),
    )

    def __init__(
        self, connection: Connection, scope: dict[str, Any], *, keep_alive: bool, wants_100: bool
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.is_whole = False
        self.is_sent = False
        self.is_over = False
        self.is_disconnected = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._body: list[bytes] = []
        self._size = 0
        self._is_taken = False
        self._is_started = False
        self._head = b""
        self._chunked = False
        self._num_left: int | None = None
        self._event: asyncio.Event | None = None
        self._wants_100 = wants_100

    # --- request ---------------------------------------------------------------------------------

    def feed(self, body: bytes) -> int:
        """Add a part of the body; return how many bytes wait for the application."""
        if not self.is_over:
            self._body.append(body)
            self._size += len(body)
            self._notify()
        return self._size

    def end(self) -> None:
        """The body is whole."""
        self.is_whole = True
        self._notify()

    def disconnect(self) -> None:
        """The client is gone."""
        self.is_disconnected = True
        self._notify()

    async def receive(self) -> Message:
        """Return what arrived of the body; when all was taken, wait for the client to leave."""
        while not self.is_disconnected and not self.is_over:
            if self._body or (self.is_whole and not self._is_taken):
                body = self._take()
                return {"type": "http.request", "body": body, "more_body": not self.is_whole}
            if self._wants_100 and not self._is_started:
                self._wants_100 = False
                self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self._event is None:
                self._event = asyncio.Event()
            self._event.clear()
            await self._event.wait()
        return {"type": "http.disconnect"}

    def take_whole(self) -> bytes | None:
        """Implements ``Direct``."""
        if self._is_taken or self.is_disconnected or self.is_over or not self.is_whole:
            return None
        return self._take()

    def _take(self) -> bytes:
        """Return what arrived since the last time."""
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._body = []
        self._size = 0
        self._is_taken = self.is_whole
        self._connection.body_taken()
        return body

    def _notify(self) -> None:
        if self._event is not None:
            self._event.set()

    # --- response --------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Write a part of the response; waits while the client does not read."""
        if self._connection.is_choked and not self.is_disconnected:
            await self._connection.drain()
        if self.is_disconnected:
            return
        kind = message["type"]
        if kind == "http.response.body" and self._is_started and not self.is_over:
            self._send_body(message.get("body", b""), bool(message.get("more_body", False)))
        elif kind == "http.response.start" and not self._is_started:
            self._send_head(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"unexpected message {kind!r} at this point of a response")

    def send_whole(self, status: int, headers: _Headers, body: bytes) -> bool:
        """Implements ``Direct``, for a response with a body on a connection that goes on."""
        connection = self._connection
        if not self.is_whole or not self.keep_alive or self._is_started:
            return False
        if self.is_disconnected or connection.is_choked:
            return False
        head = self._joined(status, [*connection.default_headers, *headers])
        if b"\nconnection:" in head:
            return False  # it may end the connection
        self._is_started = self.is_sent = self.is_over = True
        connection.write(head + body)
        self._notify()
        connection.response_over(self)
        return True

    def _send_head(self, status: int, headers: Any) -> None:
        pairs = [*self._connection.default_headers, *headers]
        found = dict(pairs)
        length = int(found[b"content-length"]) if b"content-length" in found else None
        if b"connection" in found:
            pairs = [pair for pair in pairs if not self._closes(*pair)]
        has_body = self.scope["method"] != "HEAD" and status not in _BODILESS
        if length is None and has_body:
            if self.scope["http_version"] == "1.0":
                self.keep_alive = False  # the body ends with the connection
            else:
                self._chunked = True
                pairs.append((b"transfer-encoding", b"chunked"))
        if not self.is_whole:  # what is answered before it was sent is not read any further
            self.keep_alive = False
        head = self._joined(status, pairs)
        self._is_started = True
        self._num_left = length if has_body else 0
        if length is None and has_body:  # a stream: its head may be long before its first event
            self._connection.write(head)
            self.is_sent = True
        else:
            self._head = head

    def _joined(self, status: int, pairs: _Headers) -> bytes:
        """Return the bytes of a head. Raises RuntimeError where a header would end its line."""
        parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status, *map(_line, pairs)]
        if not self.keep_alive:
            parts.append(b"connection: close")
        num_lines = len(parts) + 1
        parts += (b"", b"")
        head = b"\r\n".join(parts)
        if head.count(b"\n") != num_lines or head.count(b"\r") != num_lines or b"\0" in head:
            raise RuntimeError("a response header holds a line break or a zero byte")
        return head

    def _closes(self, name: bytes, value: bytes) -> bool:
        """Whether a header ends the connection, which is noted and said by us."""
        if name != b"connection" or b"close" not in value.lower():
            return False
        self.keep_alive = False
        return True

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        elif self._num_left is None:
            data = body
        else:
            data = body if self.scope["method"] != "HEAD" else b""
            self._num_left -= len(data)
            if self._num_left < 0 or (self._num_left and not more):
                raise RuntimeError("the response's body is not of its content-length")
        if self._head:
            data = self._head + data
            self._head = b""
        if data:
            self.is_sent = True
            self._connection.write(data)
        if not more:
            self.is_over = True
            self._notify()
            self._connection.response_over(self)
