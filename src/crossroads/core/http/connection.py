"""One HTTP/1.1 connection to an upstream, and the one exchange that runs on it at a time.

Bytes are parsed where they arrive; the task that asked sleeps on one future until what it waits
for is there. No exchange has timers of its own: one timer of the pool looks at all of them.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

if TYPE_CHECKING:
    from crossroads.core.http.timeouts import Timeouts

FailureKind = Literal["connect", "late", "lost", "cut", "timeout", "invalid"]

MAX_HEAD_BYTES = 64 << 10
MAX_BUFFERED_BYTES = 256 << 10  # of a stream's body whose reader is slow, before reading pauses
LINGER = 0.1  # seconds after the last event of a stream in which its body should end
_JOIN_BYTES = 64 << 10  # a body up to here is sent in one piece with its head

_NO_BODY = frozenset({204, 304})


class HttpFailure(Exception):  # noqa: N818 - one of six ways to fail, not six classes
    """An exchange that did not come to its end.

    ``kind``: ``connect`` no connection, ``late`` none in time, ``lost`` before any byte of an
    answer, ``cut`` amid it, ``timeout`` of what was asked, ``invalid`` no HTTP or too large.
    """

    def __init__(self, kind: FailureKind, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class Home(Protocol):
    """Where a connection goes when its exchange is over."""

    def settle(self, connection: Connection) -> None: ...

    def forget(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """Speaks HTTP/1.1 with one server.

    ``ask`` begins an exchange; ``whole`` waits for the end of the answer; or ``head`` for its head
    and then ``portion`` for each part of its body. ``abort`` ends everything at once.

    Attributes
    ----------
    status, headers : of the answer, names in lower case
    is_complete : whether the answer came to its end
    is_reused : whether an exchange ran here before
    has_heard : whether any byte of the answer came
    sent_at, ended_at : ``time.perf_counter`` just before the request was handed to the system, and
        when the end of the answer was read; each holds once that has happened
    """

    __slots__ = (
        "_chunks",
        "_deadline",
        "_extra",
        "_failure",
        "_head_bytes",
        "_head_done",
        "_heard",
        "_home",
        "_is_paused",
        "_is_until_close",
        "_keeps_alive",
        "_limit",
        "_loop",
        "_parser",
        "_size",
        "_timeouts",
        "_total",
        "_transport",
        "_wait_for",
        "_waiter",
        "ended_at",
        "has_heard",
        "headers",
        "idle_since",
        "is_busy",
        "is_complete",
        "is_lingering",
        "is_reused",
        "sent_at",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, home: Home) -> None:
        self._loop = loop
        self._home = home
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self.is_busy = False
        self.is_reused = False
        self.is_lingering = False
        self.idle_since = 0.0
        self._extra = False
        self._waiter: asyncio.Future[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.is_complete = False
        self.has_heard = False
        self._chunks: list[bytes] = []
        self._size = 0
        self._head_done = False
        self._head_bytes = 0
        self._keeps_alive = False
        self._is_until_close = False
        self._is_paused = False
        self._failure: HttpFailure | None = None
        self._wait_for = _END

    # --- what the asking task calls --------------------------------------------------------------

    def ask(
        self,
        head: bytes,
        body: bytes,
        *,
        timeouts: Timeouts,
        began: float,
        deadline: float,
        limit: int,
    ) -> None:
        """Send a request. ``began`` and ``deadline`` by ``time.monotonic``; ``limit`` in bytes.

        ``limit`` bounds an answer read whole.
        """
        if self.is_reused:
            self._reset()
        self.is_busy = True
        self._timeouts = timeouts
        self._total = deadline - began
        self._deadline = deadline
        self._limit = limit
        self._heard = time.monotonic()
        # Before the write, not after it: the system may give the core to the server within it, and
        # then the answer is there when the write returns.
        self.sent_at = time.perf_counter()
        if self._transport is None:  # gone between connecting and asking
            self._fail(HttpFailure("lost", "connection lost before an answer"))
        elif len(body) <= _JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def whole(self) -> bytes:
        """Return the body once it is there to its end. Raises HttpFailure."""
        if not self.is_complete:
            await self._wait(_END)
        chunks = self._chunks
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def head(self) -> None:
        """Wait for status and headers. Raises HttpFailure."""
        if not self._head_done:
            await self._wait(_HEAD)

    async def portion(self) -> bytes:
        """Return what came of the body since the last call, b"" at its end. Raises HttpFailure."""
        while not self._chunks and not self.is_complete:
            await self._wait(_DATA)
        chunks = self._chunks
        if not chunks:
            return b""
        self._chunks = []
        self._size = 0
        if self._is_paused:
            self._is_paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _wait(self, what: int) -> None:
        if self._failure is not None:
            raise self._failure
        self._wait_for = what
        if self._is_paused and what == _END and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._wait_for = _DATA

    def abort(self) -> None:
        """Close the connection now; whatever runs on it has failed."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_usable(self) -> bool:
        """Whether another exchange may follow the one that is over."""
        return (
            self.is_complete
            and self._keeps_alive
            and not self._extra
            and self._transport is not None
            and not self._transport.is_closing()
        )

    def rest(self) -> None:
        """The exchange is over and the connection goes on."""
        self.is_busy = False
        self.is_lingering = False
        self.is_reused = True
        self._chunks = []
        self.idle_since = time.monotonic()

    def linger(self) -> None:
        """Read what is left of the body, which nobody wants, for a moment."""
        self.is_lingering = True
        self._chunks = []
        self._deadline = time.monotonic() + LINGER
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def check(self, now: float) -> None:
        """End the exchange if it is late. Called by the pool's timer."""
        if now >= self._deadline:
            self._fail_late(f"no whole answer within {round(self._total, 2):g} s")
        elif self._waiter is None:
            self._heard = now  # a slow reader is no silence of the upstream
        elif not self._head_done:
            if now - self._heard >= self._timeouts.first_byte:
                self._fail_late(f"no answer within {self._timeouts.first_byte:g} s")
        elif now - self._heard >= self._timeouts.idle:
            self._fail_late(f"no further bytes within {self._timeouts.idle:g} s")

    def _fail_late(self, what: str) -> None:
        self._fail(HttpFailure("timeout", what))

    def _fail(self, failure: HttpFailure) -> None:
        if self._failure is None:
            self._failure = failure
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            is_there = self._chunks if self._wait_for == _DATA else self._head_done
            if is_there and self._wait_for != _END:
                waiter.set_result(None)  # what came before is good, and is read first
            else:
                waiter.set_exception(self._failure)
        self.abort()

    # --- what the event loop calls ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if not self.is_busy or self._parser is None:
            self.abort()  # nobody asked: what comes now must never answer the next request
            return
        self.has_heard = True
        if self._head_done:
            self._heard = time.monotonic()
        else:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            if not self.is_complete:
                self._fail(HttpFailure("invalid", f"no HTTP ({error})"))
                return
            self._extra = True
        except HttpParserUpgrade:
            self._fail(HttpFailure("invalid", "an answer in another protocol"))
            return
        self._look()

    def _look(self) -> None:
        """Wake who waits, bound what is kept."""
        if not self._head_done:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(HttpFailure("invalid", f"a head of more than {MAX_HEAD_BYTES} bytes"))
            return
        if self.is_lingering:
            self._chunks = []
            self._size = 0
            if self.is_complete:
                self._home.settle(self)
            return
        wanted = self._wait_for
        if self._size > self._limit and wanted == _END:
            self._fail(HttpFailure("invalid", f"answer of more than {self._limit} bytes"))
            return
        if self.is_complete or wanted == _HEAD or (wanted == _DATA and self._chunks):
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
                return
        if self._size > MAX_BUFFERED_BYTES and wanted != _END and not self.is_complete:
            self._pause()

    def _pause(self) -> None:
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._parser = None  # it knows us: without this only the garbage collector ends the pair
        self._transport = None
        if self.is_busy and not self.is_complete:
            if self._is_until_close and exc is None and self._failure is None:
                self._end()
                self._look()
            elif self._head_done:
                self._fail(HttpFailure("cut", "the answer broke off"))
            else:
                self._fail(HttpFailure("lost", "connection lost before an answer"))
        self._home.forget(self)

    # --- what the parser calls -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_complete:
            self._extra = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # else a trailer
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._extra:
            return
        assert self._parser is not None
        self.status = status = self._parser.get_status_code()
        if status < 200:
            self.headers = {}
            return
        self._head_done = True
        self._heard = time.monotonic()
        headers = self.headers
        self._is_until_close = (
            b"content-length" not in headers
            and not headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
            and status not in _NO_BODY
        )

    def on_body(self, body: bytes) -> None:
        if body and not self._extra:  # an empty portion would look like the end
            self._chunks.append(body)
            self._size += len(body)

    def on_message_complete(self) -> None:
        if self._head_done and not self._extra:
            assert self._parser is not None
            self._keeps_alive = self._parser.should_keep_alive()
            self._end()

    def _end(self) -> None:
        self.is_complete = True
        self.ended_at = time.perf_counter()


_HEAD, _DATA, _END = 1, 2, 3  # what a task waits for
