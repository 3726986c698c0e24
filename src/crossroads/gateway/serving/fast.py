"""An HTTP/1.1 server protocol for uvicorn's server loop that does less per request.

It runs the same ASGI applications as uvicorn's own and takes its place as ``http=``. What it leaves
out: WebSockets, access logs. What it does otherwise: the head and the first part of a body leave in
one write, deadlines are attributes instead of timers, HTTP/1.0 is never sent chunks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import httptools

from crossroads.gateway.serving import direct
from crossroads.gateway.serving.cycle import Cycle
from crossroads.gateway.serving.guard import (
    BODY,
    HEAD,
    IDLE,
    NEVER,
    LimitedProtocol,
    RefusedError,
    check_host,
    refusal,
    without_upgrade,
)
from crossroads.gateway.serving.line import KEY

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

logger = logging.getLogger(__name__)

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_MOST_BUFFERED = 65_536  # bytes of a body the application has not taken yet


class FastHttpProtocol(LimitedProtocol, asyncio.Protocol):
    """One connection: requests are answered one after the other, in their order."""

    __slots__ = (
        *("_app", "_app_state", "_client", "_current", "_drained", "_headers", "_host"),
        *("_incoming", "_is_paused", "_queue", "_scheme", "_server", "_server_state", "_target"),
        "_url",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app = config.loaded_app
        self._app_state = app_state
        self._server_state = server_state
        self.loop = _loop or asyncio.get_running_loop()
        self.parser: Any = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._scheme = "http"
        self._current: Cycle | None = None  # is answered
        self._incoming: Cycle | None = None  # is read
        self._queue: deque[Cycle] = deque()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._host: bytes | None = None  # the last that was found right
        self._target: tuple[bytes, tuple[str, bytes, bytes]] = (b"", ("", b"", b""))  # the last
        self._is_paused = False
        self._reset_limits()
        self._drained: asyncio.Event | None = None

    # --- connection ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        connections: set[Any] = self._server_state.connections
        connections.add(self)
        self._join(connections)

    def connection_lost(self, exc: Exception | None) -> None:
        connections: set[Any] = self._server_state.connections
        connections.discard(self)
        self._leave()
        if self._current is not None:
            self._current.disconnect()
        # What refers to this connection, or to itself, would stay until the next look for garbage.
        self._current = self._incoming = None
        self._clear_queue()
        if self._drained is not None:
            self._drained.set()
        self._is_deaf = True
        self.parser = None

    def shutdown(self) -> None:
        """Close when the answer under way is over; called by the server when it stops."""
        self._clear_queue()
        if self._current is None:
            self.transport.close()
        else:
            self._current.keep_alive = False

    def _clear_queue(self) -> None:
        for cycle in self._queue:
            del cycle.scope[direct.KEY]
        self._queue.clear()

    # --- parser ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reading = HEAD
        self._url = b""
        self._headers = []
        self._num_head_bytes = 0
        self._deadline = self.loop.time() + self.settings.header_s

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading == HEAD:  # later ones are trailers of a chunked body
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        headers = self._headers
        parser = self.parser
        self._check_head(headers)
        version = parser.get_http_version()
        wants_100 = self._check(headers, version)
        if parser.should_upgrade():
            self._offer = without_upgrade(parser.get_method(), self._url, version, headers)
            return
        method = parser.get_method().decode("ascii")
        if self._url != self._target[0]:  # else the same as of the request before
            self._target = (self._url, _split(self._url))
        path, raw_path, query = self._target[1]
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": method,
            "scheme": self._scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self._client,
            "server": self._server,
            "state": self._app_state.copy(),
            KEY: self._line,
        }
        keep_alive = version != "1.0" and parser.should_keep_alive()
        cycle = Cycle(self, scope, keep_alive=keep_alive, wants_100=wants_100)
        scope[direct.KEY] = cycle
        self._incoming = cycle
        self._reading = BODY
        self._deadline = self.loop.time() + self.settings.body_s
        if self._current is None:
            self._start(cycle)
        else:
            self._queue.append(cycle)
            self._pause()

    def _check(self, headers: list[tuple[bytes, bytes]], version: str) -> bool:
        """Check ``Host``; return whether the client waits for a 100. Raises RefusedError."""
        num_hosts = 0
        host = b""
        wants_100 = False
        for name, value in headers:
            if name == b"host":
                num_hosts += 1
                host = value
            elif name == b"expect":
                wants_100 = value.lower() == b"100-continue"
        if num_hosts != 1 or host != self._host:  # else the same as of the request before
            check_host(headers, version)
            self._host = host
        return wants_100

    def on_body(self, body: bytes) -> None:
        cycle = self._incoming
        if cycle is not None and cycle.feed(body) > _MOST_BUFFERED:
            self._pause()

    def on_message_complete(self) -> None:
        if self._offer:
            return
        self._reading = IDLE
        self._deadline = NEVER
        cycle = self._incoming
        if cycle is not None:
            cycle.end()
            self._incoming = None

    # --- application -----------------------------------------------------------------------------

    def _start(self, cycle: Cycle) -> None:
        self._current = cycle
        task = self.loop.create_task(self._run(cycle))
        cycle.task = task
        self._server_state.tasks.add(task)

    async def _run(self, cycle: Cycle) -> None:
        try:
            await self._app(cycle.scope, cycle.receive, cycle.send)
        except asyncio.CancelledError:
            self.transport.close()  # without the end of its body: nothing cut looks whole
            raise
        except Exception:
            logger.exception("the application failed")
            self._give_up(cycle)
        else:
            if not cycle.is_over and not cycle.is_disconnected:
                logger.error("the application returned before its response was over")
                self._give_up(cycle)
        finally:
            if cycle.task is not None:
                self._server_state.tasks.discard(cycle.task)
            # Each held the other: all of the request would stay until the next look for garbage.
            del cycle.scope[direct.KEY]

    def _give_up(self, cycle: Cycle) -> None:
        if not cycle.is_sent and not cycle.is_disconnected:
            self.transport.write(refusal(500, "The server failed on this request."))
        cycle.disconnect()
        self.transport.close()

    def write(self, data: bytes) -> None:
        """Send bytes of the current response."""
        self.transport.write(data)

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of every response; the server replaces the list when they change."""
        return self._server_state.default_headers

    @property
    def is_choked(self) -> bool:
        """Whether the client does not read as fast as it is written to."""
        return self._drained is not None

    async def drain(self) -> None:
        """Wait until the client has read most of what was written."""
        if self._drained is not None:
            await self._drained.wait()

    def body_taken(self) -> None:
        """The application took what was buffered: read on, unless a request is waiting."""
        if self._is_paused and not self._queue:
            self._resume()

    def response_over(self, cycle: Cycle) -> None:
        """The last byte of a response was written: close, or turn to the next request."""
        self._server_state.total_requests += 1
        self._current = None
        if self.transport.is_closing():
            return
        if not cycle.is_whole:
            self._linger()
        elif not cycle.keep_alive:
            self.transport.close()
        elif self._queue:
            self._start(self._queue.popleft())
        elif self._is_deaf:  # what came after this request was no HTTP
            self.transport.close()
        elif self._reading == IDLE:
            self._deadline = self.loop.time() + self.settings.keep_alive_s
        if self._is_paused and not self._queue:
            self._resume()

    # --- limits ----------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self._drained = asyncio.Event()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        self._unread_since = NEVER
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        self._is_paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    @property
    def _is_answering(self) -> bool:
        return self._current is not None

    @property
    def _keeps_waiting(self) -> bool:
        return self._is_paused

    def _read_on(self) -> None:
        if self._is_paused:
            self._resume()

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, unless another answer is under way, and read no further."""
        current = self._current
        if current is not None and current is self._incoming:
            is_sent = current.is_sent
            current.disconnect()
            self._current = None
            if is_sent:
                self.transport.close()
                return
        elif current is not None:  # the next request is wrong; this one is served
            self._is_deaf = True
            self._deadline = NEVER
            if self._queue and not self._queue[-1].is_whole:  # only the last can be in the making
                del self._queue.pop().scope[direct.KEY]
            return
        self.transport.write(refusal(status, message))
        self._linger()


def _address(given: Any) -> tuple[str, int] | None:
    return (str(given[0]), int(given[1])) if isinstance(given, tuple) else None


def _split(url: bytes) -> tuple[str, bytes, bytes]:
    """Return path, path as sent and query of a request's target. Raises RefusedError."""
    if url[:1] != b"/":  # absolute-form: what is sent to proxies, and allowed to all
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            raise RefusedError(400, "The request's target is not valid.") from None
        return _decoded(parsed.path or b"/"), parsed.path or b"/", parsed.query or b""
    raw, _, query = url.partition(b"?")
    raw = raw.partition(b"#")[0]
    return _decoded(raw), raw, query.partition(b"#")[0]


def _decoded(raw: bytes) -> str:
    if b"%" not in raw and raw.isascii():
        return raw.decode("ascii")
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(400, "The request's path is not UTF-8.") from None
