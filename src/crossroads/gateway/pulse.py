"""Signs of life in a stream whose model is silent, so that nobody on the way hangs up."""

from __future__ import annotations

import asyncio
from types import TracebackType

from crossroads.gateway.call import Dialect
from crossroads.gateway.exchange import Exchange

_COMMENT = b": keep-alive\n\n"  # by the standard of server-sent events, ignored by every client
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'  # Anthropic's own


class Pulse:
    """A context in which a stream that has been silent for ``seconds`` gets a sign of life.

    It comes between events, since those are always sent whole, and up to twice as late. With None
    for ``seconds`` there is none.
    """

    __slots__ = ("_beat", "_data", "_exchange", "_num_parts", "_seconds", "_timer")

    def __init__(self, exchange: Exchange, dialect: Dialect, seconds: float | None) -> None:
        self._exchange = exchange
        self._data = _PING if dialect == "messages" else _COMMENT
        self._seconds = seconds
        self._num_parts = exchange.num_parts
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        if self._seconds is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._look, loop, self._seconds)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()  # it still waits for a client that does not read

    def _look(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._timer = loop.call_later(seconds, self._look, loop, seconds)
        exchange = self._exchange
        is_silent = exchange.num_parts == self._num_parts
        self._num_parts = exchange.num_parts
        if is_silent and (self._beat is None or self._beat.done()):
            self._beat = loop.create_task(exchange.send_between(self._data))
