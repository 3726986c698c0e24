"""uvicorn's HTTP/1.1 protocol, with the limits it has no setting for."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from crossroads.gateway.serving.guard import (
    LINGER_S,
    NEVER,
    RefusedError,
    Watchman,
    check_host,
    check_size,
    refusal,
    without_upgrade,
)
from crossroads.gateway.serving.settings import FrontSettings

_IDLE, _HEAD, _BODY = range(3)


class _Trailers(list[tuple[bytes, bytes]]):
    """Stays empty."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        return


_TRAILERS = _Trailers()


class GuardedHttpProtocol(HttpToolsProtocol):
    """Time limits for head, body and unread answers; size limits for heads; a limit of connections.

    What is refused before the application sees it gets an error object. A client that is answered
    before it sent its whole body is not read any further.
    """

    settings: ClassVar[FrontSettings] = FrontSettings()
    watchman: ClassVar[Watchman | None] = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = _IDLE
        self._is_long = False
        self._is_deaf = False
        self._deadline = NEVER
        self._unread_since = NEVER
        self._num_head_bytes = 0
        self._offer = b""  # head of a request that offers to change the protocol, without that

    # --- connection ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        kind = type(self)
        if kind.watchman is None or kind.watchman.loop is not self.loop:
            kind.watchman = Watchman(self.loop, self.settings)
        kind.watchman.add(self)
        self._deadline = self.loop.time() + self.settings.header_s
        if len(self.connections) > self.settings.max_connections:
            self._is_deaf = True
            self.transport.write(refusal(503, "Too many connections; try again soon."))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if type(self).watchman is not None:
            type(self).watchman.discard(self)  # type: ignore[union-attr]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        limit = self.settings.header_bytes
        is_same_head = self._reading == _HEAD
        self._is_long = is_same_head or len(data) > limit
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
        if is_same_head and self._reading == _HEAD:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > limit:
                self._refuse(431, f"The headers are larger than {limit} bytes; send fewer.")

    def _go_on(self, rest: bytes) -> None:
        """Stay with HTTP/1.1 where the client offers another protocol, as it must expect."""
        self.parser = httptools.HttpRequestParser(self)
        self._reading = _IDLE
        head, self._offer = self._offer, b""
        self.data_received(head + rest)

    # --- parser ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading = _HEAD
        self._num_head_bytes = 0
        self._deadline = self.loop.time() + self.settings.header_s

    def on_headers_complete(self) -> None:
        if len(self.headers) > self.settings.header_count:
            raise RefusedError(431, f"Expected at most {self.settings.header_count} headers.")
        if self._is_long:
            check_size(self.headers, self.settings.header_bytes)
        version = self.parser.get_http_version()
        check_host(self.headers, version)
        if self.parser.should_upgrade():
            method = self.parser.get_method()
            self._offer = without_upgrade(method, self.url, version, self.headers)
            return
        super().on_headers_complete()
        self.headers = _TRAILERS  # what follows a chunked body is passed over
        self._reading = _BODY
        self._deadline = self.loop.time() + self.settings.body_s

    def on_message_complete(self) -> None:
        if self._offer:
            return
        super().on_message_complete()
        self._reading = _IDLE
        self._deadline = NEVER

    # --- application -----------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._reading == _BODY and not self.pipeline:
            self._linger()
        elif self._reading == _IDLE:
            self._deadline = self.loop.time() + self.settings.keep_alive_s

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = NEVER

    # --- limits ----------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End the connection where a deadline has passed."""
        if now - self._unread_since > self.settings.write_s:
            self.transport.abort()
        elif now >= self._deadline:
            self._expire(now)

    def _expire(self, now: float) -> None:
        if self._is_deaf:
            self.transport.abort()
        elif self._reading == _IDLE:
            self.transport.close()
        elif self.flow.read_paused or (self._reading == _HEAD and self._is_answering):
            self._deadline = now + self.settings.header_s  # we keep it waiting, not it us
        else:
            self._refuse(408, "The request did not arrive in time.")

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, unless another answer is under way, and read no further."""
        if self._is_answering:
            cycle = self.cycle
            if self._reading != _BODY:  # the next request is wrong; this one is served
                cycle.keep_alive = False
                self._is_deaf = True
                self._deadline = NEVER
                return
            is_started = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if is_started:
                self.transport.close()
                return
        self.transport.write(refusal(status, message))
        self._linger()

    def _linger(self) -> None:
        """Stop writing, discard what still comes: closing at once would destroy the answer."""
        self._is_deaf = True
        self._unset_keepalive_if_required()
        self._deadline = self.loop.time() + LINGER_S
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
