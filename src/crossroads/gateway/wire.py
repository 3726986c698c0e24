"""One HTTP exchange over ASGI: read a request with limits, send JSON or server-sent events."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

import orjson

from crossroads.gateway.errors import ApiError, Headers

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Exchange:
    """A request and the response to it.

    Attributes
    ----------
    method, path : as sent; the path is decoded, without query
    headers : lower-case name to value, the last one where a name is repeated
    more_headers : sent with the response, whatever becomes of the request
    request_id : the client's own if it is printable ASCII, else a new one
    is_answered : whether the head of a response was sent
    is_over : whether the whole response was sent
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        given = self.headers.get(b"x-request-id", b"")
        is_usable = _REQUEST_ID.fullmatch(given) is not None
        self.request_id = given if is_usable else f"req_{uuid.uuid4().hex}".encode()
        self.more_headers: Headers = []
        self.is_answered = False
        self.is_over = False

    def text_headers(self) -> dict[str, str]:
        """Return the request's headers as text."""
        return {
            name.decode("latin-1"): text.decode("latin-1") for name, text in self.headers.items()
        }

    async def read_body(self, limit: int) -> bytes:
        """Return the body. Raises ApiError 413 over ``limit`` bytes, ClientGoneError."""
        too_long = ApiError(
            f"The request body is larger than {limit} bytes.", status=413, code="request_too_large"
        )
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > limit:
            raise too_long
        portions: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            portion = message.get("body", b"")
            size += len(portion)
            if size > limit:
                raise too_long
            portions.append(portion)
            if not message.get("more_body", False):
                return b"".join(portions)

    async def send_json(self, body: bytes, *, status: int = 200, headers: Headers) -> None:
        """Send a whole JSON response."""
        await self._send_head(
            status,
            [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        )
        await self._send_body(b"" if self.method == "HEAD" else body, more=False)

    async def send_error(self, error: ApiError) -> None:
        """Send an error, as a response or, in a stream that has begun, as its last event."""
        if not self.is_answered:
            await self.send_json(error.body, status=error.status, headers=error.headers)
        elif not self.is_over:
            await self._send_body(b"data: " + error.body + b"\n\n", more=False)

    async def start_events(self, headers: Headers) -> None:
        """Send the head of an event stream."""
        await self._send_head(200, [*_EVENT_STREAM, *headers])

    async def send_event(self, data: Any) -> None:
        """Send one event at once; waits while the client is slow to read."""
        await self._send_body(b"data: " + orjson.dumps(data) + b"\n\n", more=True)

    async def end_events(self) -> None:
        """Send ``[DONE]`` and end the stream."""
        await self._send_body(b"data: [DONE]\n\n", more=False)

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work``; cancel it when the client goes away before its response is over."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            # uvicorn also reports a disconnect once the response is over.
            if not task.done() and not self.is_over:
                task.cancel()
                await asyncio.wait({task})
            if not task.cancelled():
                await task
        finally:
            gone.cancel()
            task.cancel()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _send_head(self, status: int, headers: Headers) -> None:
        self.is_answered = True
        head = [(b"x-request-id", self.request_id), *self.more_headers, *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        self.is_over = not more
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class ClientGoneError(ConnectionError):
    """The client closed the connection; nobody is left to tell."""
