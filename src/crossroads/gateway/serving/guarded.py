"""uvicorn's HTTP/1.1 protocol, with the limits it has no setting for."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from crossroads.gateway.serving.guard import (
    BODY,
    HEAD,
    IDLE,
    NEVER,
    LimitedProtocol,
    check_host,
    refusal,
    without_upgrade,
)
from crossroads.gateway.serving.line import KEY


class _Trailers(list[tuple[bytes, bytes]]):
    """Stays empty."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        return


_TRAILERS = _Trailers()


class GuardedHttpProtocol(LimitedProtocol, HttpToolsProtocol):
    """Time limits for head, body and unread answers; size limits for heads; a limit of connections.

    What is refused before the application sees it gets an error object. A client that is answered
    before it sent its whole body is not read any further.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reset_limits()

    # --- connection ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._join(self.connections)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_deaf:
            self._unset_keepalive_if_required()
            super().data_received(data)

    # --- parser ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading = HEAD
        self._num_head_bytes = 0
        self._deadline = self.loop.time() + self.settings.header_s

    def on_headers_complete(self) -> None:
        self._check_head(self.headers)
        version = self.parser.get_http_version()
        check_host(self.headers, version)
        if self.parser.should_upgrade():
            method = self.parser.get_method()
            self._offer = without_upgrade(method, self.url, version, self.headers)
            return
        self.scope[KEY] = self._line  # type: ignore[literal-required]
        super().on_headers_complete()
        self.headers = _TRAILERS  # what follows a chunked body is passed over
        self._reading = BODY
        self._deadline = self.loop.time() + self.settings.body_s

    def on_message_complete(self) -> None:
        if self._offer:
            return
        super().on_message_complete()
        self._reading = IDLE
        self._deadline = NEVER

    # --- application -----------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._reading == BODY and not self.pipeline:
            self._linger()
        elif self._reading == IDLE:
            self._deadline = self.loop.time() + self.settings.keep_alive_s

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = NEVER

    # --- limits ----------------------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _keeps_waiting(self) -> bool:
        return bool(self.flow.read_paused)

    def _read_on(self) -> None:
        self.flow.resume_reading()

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, unless another answer is under way, and read no further."""
        if self._is_answering:
            cycle = self.cycle
            if self._reading != BODY:  # the next request is wrong; this one is served
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
        self._unset_keepalive_if_required()
        super()._linger()
