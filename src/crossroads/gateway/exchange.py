"""One HTTP exchange over ASGI: read a request with limits, send JSON or server-sent events."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from typing import Any

from crossroads.gateway.call import random_id
from crossroads.gateway.errors import ApiError, Headers
from crossroads.gateway.serving import direct
from crossroads.gateway.serving.line import KEY, Line

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
# Where the server does not tell at once that a client left, watching for it costs a task. Most
# calls are over before it is worth one: it begins between once and twice this many seconds after
# the call.
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
    num_parts : of the response's body, sent so far
    is_over : whether the whole response was sent
    is_gone : whether the client left before that
    line : tells at once when the client leaves; None with a server that cannot
    keep : is handed every byte of the response's body, where a copy is wanted
    """

    __slots__ = (
        *("_direct", "_head", "_lookout", "_receive", "_send", "headers", "id_header", "is_gone"),
        *("is_over", "keep", "line", "method", "more_headers", "num_parts", "path", "query"),
        *("request_id", "status"),
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, lookout: Lookout) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._lookout = lookout
        self.line: Line | None = scope.get(KEY)
        # What is left of a HEAD's response has another length than its headers tell.
        self._direct: direct.Direct | None = (
            None if self.method == "HEAD" else scope.get(direct.KEY)
        )
        given = self.headers.get(b"x-request-id")
        if given is None or _REQUEST_ID.fullmatch(given) is None:
            given = b"req_" + random_id().encode()
        self.request_id = given
        self.id_header = b"x-request-id"
        self.more_headers: Headers = []
        self._head: Headers = []
        self.status = 0
        self.num_parts = 0
        self.is_over = False
        self.is_gone = False
        self.keep: Keep | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the head of a response was sent."""
        return self.status != 0

    @property
    def sent_headers(self) -> Headers:
        """Those of the response, but for the request's id; empty before its head was sent."""
        return self._head[1:]

    async def read_body(self, limit: int) -> bytes:
        """Return the body. Raises ApiError 413 over ``limit`` bytes, ClientGoneError."""
        whole = None if self._direct is None else self._direct.take_whole()
        if whole is not None:
            if len(whole) > limit:
                raise _too_long(limit)
            return whole
        announced = self.headers.get(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit:
            raise _too_long(limit)
        portions: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            portion: bytes = message.get("body", b"")
            size += len(portion)
            if size > limit:
                raise _too_long(limit)
            if not message.get("more_body", False):
                return b"".join([*portions, portion]) if portions else portion
            portions.append(portion)

    def send_json(
        self,
        body: bytes,
        *,
        status: int = 200,
        headers: Headers,
        content_type: bytes = b"application/json",
    ) -> Coroutine[Any, Any, None]:
        """Send a whole response; to be awaited."""
        return self.send_whole(status, [(b"content-type", content_type), *headers], body)

    async def send_whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a response whose headers name the type of its body."""
        length = (b"content-length", b"%d" % len(body))
        head = self._begin(status, [*headers, length])
        if self._direct is not None and self._direct.send_whole(status, self._head, body):
            self.is_over = True
            if self.keep is not None:
                self.keep(body)
            return
        await self._send(head)
        await self._send(self._part(b"" if self.method == "HEAD" else body, more=False))

    async def start_events(self, headers: Headers) -> None:
        """Send the head of an event stream."""
        await self._send(self._begin(200, [*_EVENT_STREAM, *headers]))

    def send_part(self, data: bytes) -> Awaitable[None]:
        """Send bytes of a stream at once; to be awaited, while the client is slow to read."""
        return self._send(self._part(data, more=True))

    async def send_between(self, data: bytes) -> None:
        """Send bytes that are no part of the answer, such as a comment in a stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def end(self, data: bytes = b"") -> Awaitable[None]:
        """Send the last bytes of a stream; to be awaited."""
        return self._send(self._part(data, more=False))

    def watch(self) -> Watch:
        """Return a context in which this task is cancelled when the client leaves."""
        return Watch(self, self._lookout)

    async def until_disconnected(self) -> None:
        """Return when the client has left, or the response is over."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _begin(self, status: int, headers: Headers) -> Message:
        """Return the message that begins a response."""
        self.status = status
        self._head = head = [(self.id_header, self.request_id), *self.more_headers, *headers]
        return {"type": "http.response.start", "status": status, "headers": head}

    def _part(self, body: bytes, *, more: bool) -> Message:
        """Return the message that holds a part of its body."""
        self.is_over = not more
        self.num_parts += 1
        if self.keep is not None:
            self.keep(body)
        return {"type": "http.response.body", "body": body, "more_body": more}


class Lookout(threading.local):
    """Starts the watches of calls that last: one timer for all calls of an event loop.

    Every thread sees its own, for its own event loop: a task is cancelled from the loop it runs on.

    Attributes
    ----------
    loop : the last that a watch was entered on
    young : watches entered since the timer ran last; they remove themselves
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.has_timer = False
        self.young: dict[Watch, None] = {}
        self._old: dict[Watch, None] = {}

    def task(self) -> asyncio.Task[Any]:
        """Return the current task."""
        loop = self.loop
        # Which loop runs is asked only where it is not the last one: asking is a system call.
        task = None if loop is None else asyncio.current_task(loop)
        return self._settle() if task is None else task

    def _settle(self) -> asyncio.Task[Any]:
        """Turn to the event loop that runs; return its current task."""
        self.loop = asyncio.get_running_loop()
        self.has_timer = False
        self.young, self._old = {}, {}
        task = asyncio.current_task(self.loop)
        assert task is not None
        return task

    def wind(self) -> None:
        """Start the timer."""
        assert self.loop is not None
        self.has_timer = True
        self.loop.call_later(_WATCH_AFTER_S, self._look)

    def _look(self) -> None:
        old, self._old, self.young = self._old, self.young, {}
        for watch in old:
            watch.start()
        self.has_timer = False
        if self._old:
            self.wind()


class Watch:
    """Cancels the task that entered it when the client leaves before its response is over."""

    __slots__ = ("_among", "_exchange", "_lookout", "_task", "_watcher")

    def __init__(self, exchange: Exchange, lookout: Lookout) -> None:
        self._exchange = exchange
        self._lookout = lookout
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        line, lookout = self._exchange.line, self._lookout
        self._task = lookout.task()
        if line is not None:
            if line.is_cut:
                raise ClientGoneError
            line.on_cut = self._leave
            return
        self._among = lookout.young
        self._among[self] = None
        if not lookout.has_timer:
            lookout.wind()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        exchange = self._exchange
        if exchange.line is not None:
            exchange.line.on_cut = None
        else:
            self._among.pop(self, None)
            if self._watcher is not None:
                self._watcher.cancel()
        # Without an exception: somebody held the cancellation back, and what was sent was lost.
        if exchange.is_gone and (kind is None or kind is asyncio.CancelledError):
            self._task.uncancel()
            raise ClientGoneError

    def start(self) -> None:
        """Begin to watch."""
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        with suppress(asyncio.CancelledError):
            await self._exchange.until_disconnected()
            # Servers also report a disconnect once the response is over.
            if not self._exchange.is_over:
                self._leave()

    def _leave(self) -> None:
        """The client left: what is done for it ends here."""
        self._exchange.is_gone = True
        self._task.cancel()


class ClientGoneError(ConnectionError):
    """The client closed the connection; nobody is left to tell."""


def _too_long(limit: int) -> ApiError:
    return ApiError(
        f"The request body is larger than {limit} bytes.", status=413, code="request_too_large"
    )
