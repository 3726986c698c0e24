"""Keep-alive connections to one server: who gets which, and when they are closed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from crossroads.core.http.connection import Connection, HttpFailure
from crossroads.core.http.dial import Target, dial, tls_context

if TYPE_CHECKING:
    import ssl

    from crossroads.core.http.timeouts import Timeouts

_BUSY_TICK = 0.05  # seconds between two looks at running exchanges: how late a timeout can be
_IDLE_TICK = 1.0  # seconds between two looks at idle connections


class Phases(Protocol):
    """Who counts the seconds of a call."""

    connect: float
    upstream: float


@dataclass(slots=True)
class Seconds:
    """Seconds of a call: getting a connection, and from the request to the end of the answer."""

    connect: float = 0.0
    upstream: float = 0.0


@dataclass(slots=True)
class Request:
    """One request, ready to be sent, and the bounds of its answer.

    Attributes
    ----------
    head, body : as they go over the wire
    timeouts : seconds per phase
    deadline : ``time.monotonic`` by which the answer must be whole
    phases : added to
    max_bytes : of an answer read whole
    can_resend : whether it may be sent again when a kept connection turns out to be dead
    """

    head: bytes
    body: bytes
    timeouts: Timeouts
    deadline: float
    phases: Phases
    max_bytes: int
    can_resend: bool = True


class ConnectionPool:
    """Connections to one target, kept between requests.

    Parameters
    ----------
    target : server, and the way to it
    max_idle : connections kept while nobody uses them
    idle_s : seconds after which an unused connection is closed
    """

    def __init__(self, target: Target, *, max_idle: int = 64, idle_s: float = 30.0) -> None:
        self.target = target
        self.num_opened = 0
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._num_users = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_timer_fast = False
        self._tls: ssl.SSLContext | None = None

    async def start(self) -> None:
        """Make ready to connect. Raises InputError for a ``ca_file`` that cannot be used."""
        self.check()
        self._num_users += 1
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Read the certificates. Raises InputError for a ``ca_file`` that cannot be used."""
        if self.target.is_tls and self._tls is None:
            self._tls = tls_context(self.target.ca_file)

    async def close(self) -> None:
        """Close everything when the last that started it is done with it."""
        self._num_users -= 1
        if self._num_users > 0:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_timer_fast = False
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def num_busy(self) -> int:
        return len(self._busy)

    async def fetch(self, request: Request) -> tuple[Connection, bytes]:
        """Return the answer: a connection with status and headers, done with, and the body.

        Raises HttpFailure. Cancelling closes the connection.
        """
        is_again = False
        while True:
            connection = await self._ask(request, is_again=is_again)
            try:
                body = await connection.whole()
            except HttpFailure as failure:
                if request.can_resend and not is_again and _is_stale(connection, failure):
                    is_again = True
                    continue
                raise
            finally:
                # What a busy loop lets an answer wait that it has read is not the server's time.
                ended = connection.ended_at if connection.is_complete else time.perf_counter()
                request.phases.upstream += ended - connection.sent_at
                self.settle(connection)
            return connection, body

    async def open(self, request: Request) -> Connection:
        """Return a connection whose answer's head is there; ``settle`` it in the end.

        Raises HttpFailure. Cancelling closes the connection.
        """
        is_again = False
        while True:
            connection = await self._ask(request, is_again=is_again)
            try:
                await connection.head()
            except BaseException as error:
                self.settle(connection)
                if request.can_resend and not is_again and _is_stale(connection, error):
                    is_again = True
                    continue
                raise
            finally:
                request.phases.upstream += time.perf_counter() - connection.sent_at
            return connection

    async def _ask(self, request: Request, *, is_again: bool) -> Connection:
        began = time.monotonic()
        if began >= request.deadline:
            raise HttpFailure("late", "no time is left to ask")
        # A request that found a dead connection gets a fresh one: others may be dead, too.
        connection = None if is_again else self._take()
        if connection is None:
            connection = await self._connect(request)
        self._busy.add(connection)
        if not self._is_timer_fast:
            self._wind(_BUSY_TICK)
        connection.ask(
            request.head,
            request.body,
            timeouts=request.timeouts,
            began=began,
            deadline=request.deadline,
            limit=request.max_bytes,
        )
        return connection

    def _take(self) -> Connection | None:
        """Return the connection used last: it is the least likely to be dead."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.is_usable:
                return connection
            connection.abort()
        return None

    async def _connect(self, request: Request) -> Connection:
        began = time.perf_counter()
        seconds = min(request.timeouts.connect, request.deadline - time.monotonic())
        connection = Connection(self._loop, self)
        try:
            async with asyncio.timeout(seconds):
                await dial(self._loop, self.target, self._tls, connection)
        except TimeoutError as error:
            connection.abort()
            raise HttpFailure("late", f"no connection within {round(seconds, 2):g} s") from error
        except BaseException:
            connection.abort()
            raise
        finally:
            request.phases.connect += time.perf_counter() - began
        self.num_opened += 1
        return connection

    def settle(self, connection: Connection) -> None:
        """Take a connection back: keep it if its exchange came to a good end, else close it."""
        self._busy.discard(connection)
        if connection.is_usable and len(self._idle) < self._max_idle and self._num_users > 0:
            connection.rest()
            self._idle.append(connection)
        else:
            connection.abort()

    def linger(self, connection: Connection) -> None:
        """Take back a connection whose body only has to end."""
        if connection.is_complete:
            self.settle(connection)
        else:
            connection.linger()

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self._busy.discard(connection)
        if not connection.is_busy and connection in self._idle:
            self._idle.remove(connection)

    # --- the one timer ---------------------------------------------------------------------------

    def _wind(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._is_timer_fast = seconds == _BUSY_TICK
        self._timer = self._loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._is_timer_fast = False
        now = time.monotonic()
        for connection in tuple(self._busy):
            connection.check(now)
        # The list is in the order of use: the oldest are in front.
        while self._idle and now - self._idle[0].idle_since >= self._idle_s:
            self._idle.pop(0).abort()
        if self._busy:
            self._wind(_BUSY_TICK)
        elif self._idle:
            self._wind(_IDLE_TICK)


def _is_stale(connection: Connection, error: BaseException) -> bool:
    """Whether the server closed a kept connection before it could see the request.

    Then nothing of an answer came, and sending again does nothing twice as far as HTTP can tell.
    """
    return (
        isinstance(error, HttpFailure)
        and error.kind == "lost"
        and connection.is_reused
        and not connection.has_heard
    )
