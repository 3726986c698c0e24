"""One HTTP exchange over ASGI: read a request with limits, send JSON or server-sent events."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from crossroads.gateway.errors import ApiError, Headers

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Keep = Callable[[bytes], None]

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# Watching for a client that leaves costs a task. Most calls are over before it is worth one.
_WATCH_AFTER_S = 0.02


class Exchange:
    """A request and the response to it.

    Attributes
    ----------
    method, path : as sent; the path is decoded, without query
    headers : lower-case name to value, the last one where a name is repeated
    id_header : name of the header that the request's id is sent back in
    more_headers : sent with the response, whatever becomes of the request
    request_id : the client's own if it is printable ASCII, else a new one
    status : of the response, once its head was sent; 0 before
    is_over : whether the whole response was sent
    is_gone : whether the client left before that
    keep : is handed every byte of the response's body, where a copy is wanted
    """

    __slots__ = (
        *("_receive", "_send", "headers", "id_header", "is_gone", "is_over", "keep", "method"),
        *("more_headers", "path", "query", "request_id", "sent_headers", "status"),
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        given = self.headers.get(b"x-request-id")
        if given is None or _REQUEST_ID.fullmatch(given) is None:
            given = b"req_" + os.urandom(16).hex().encode()
        self.request_id = given
        self.id_header = b"x-request-id"
        self.more_headers: Headers = []
        self.sent_headers: Headers = []
        self.status = 0
        self.is_over = False
        self.is_gone = False
        self.keep: Keep | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the head of a response was sent."""
        return self.status != 0

    async def read_body(self, limit: int) -> bytes:
        """Return the body. Raises ApiError 413 over ``limit`` bytes, ClientGoneError."""
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > limit:
            raise _too_long(limit)
        portions: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            portion = message.get("body", b"")
            size += len(portion)
            if size > limit:
                raise _too_long(limit)
            portions.append(portion)
            if not message.get("more_body", False):
                return portions[0] if len(portions) == 1 else b"".join(portions)

    async def send_json(
        self,
        body: bytes,
        *,
        status: int = 200,
        headers: Headers,
        content_type: bytes = b"application/json",
    ) -> None:
        """Send a whole response."""
        await self.send_whole(status, [(b"content-type", content_type), *headers], body)

    async def send_whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a response whose headers name the type of its body."""
        await self._send_head(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self._send_body(b"" if self.method == "HEAD" else body, more=False)

    async def start_events(self, headers: Headers) -> None:
        """Send the head of an event stream."""
        await self._send_head(200, [*_EVENT_STREAM, *headers])

    async def send_part(self, data: bytes) -> None:
        """Send bytes of a stream at once; waits while the client is slow to read."""
        await self._send_body(data, more=True)

    async def end(self, data: bytes = b"") -> None:
        """Send the last bytes of a stream."""
        await self._send_body(data, more=False)

    def watch(self) -> Watch:
        """Return a context in which this task is cancelled when the client leaves."""
        return Watch(self)

    async def until_disconnected(self) -> None:
        """Return when the client has left, or the response is over."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _send_head(self, status: int, headers: Headers) -> None:
        self.status = status
        self.sent_headers = [*self.more_headers, *headers]
        head = [(self.id_header, self.request_id), *self.sent_headers]
        await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        self.is_over = not more
        if self.keep is not None:
            self.keep(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class Watch:
    """Cancels the task that entered it when the client leaves before its response is over."""

    __slots__ = ("_exchange", "_task", "_timer", "_watcher")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._timer = loop.call_later(_WATCH_AFTER_S, self._start)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._exchange.is_gone and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise ClientGoneError

    def _start(self) -> None:
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        with suppress(asyncio.CancelledError):
            await self._exchange.until_disconnected()
            # Servers also report a disconnect once the response is over.
            if not self._exchange.is_over:
                self._exchange.is_gone = True
                self._task.cancel()


class ClientGoneError(ConnectionError):
    """The client closed the connection; nobody is left to tell."""


def _too_long(limit: int) -> ApiError:
    return ApiError(
        f"The request body is larger than {limit} bytes.", status=413, code="request_too_large"
    )
