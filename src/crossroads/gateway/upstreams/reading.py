"""A stream's bytes into batches of checked events, and its end into a verdict."""

from __future__ import annotations

import time

import orjson

from crossroads.core.http.connection import Connection
from crossroads.core.http.sse import DataReader, EventTooLargeError
from crossroads.gateway.call import Event
from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams.failures import Failures
from crossroads.gateway.upstreams.progress import (
    MalformedEventError,
    ReportedError,
    progress_of,
)
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.experts.failures import excerpt, json_object

_DONE = b"[DONE]"


class StreamReading:
    """Reads one stream; ``next`` until it returns None.

    Parameters
    ----------
    connection : whose answer is an event stream
    order : its dialect and phases count
    failures : makes the errors
    max_event_bytes : longest event that is read
    """

    __slots__ = (
        "_connection",
        "_failure",
        "_failures",
        "_is_ended",
        "_phases",
        "_progress",
        "_sse",
    )

    def __init__(
        self, connection: Connection, order: Order, failures: Failures, *, max_event_bytes: int
    ) -> None:
        self._connection = connection
        self._phases = order.phases
        self._failures = failures
        self._sse = DataReader(max_event_bytes=max_event_bytes)
        self._progress = progress_of(order.dialect, order.body)
        self._failure: ExpertError | None = None  # of an event after those given last
        self._is_ended = False

    async def next(self) -> list[Event] | None:
        """Return the events of the next read; None after the last, if the stream is whole.

        A stream that merely stops was cut. Raises ExpertError and HttpFailure.
        """
        progress, connection, phases = self._progress, self._connection, self._phases
        while self._failure is None and not self._is_ended and not progress.is_over:
            began = time.perf_counter()
            try:
                portion = await connection.portion()
            finally:  # also where it failed: it was waited for
                phases.upstream += time.perf_counter() - began
            self._is_ended = not portion
            try:
                datas = self._sse.feed(portion) if portion else self._sse.flush()
            except EventTooLargeError as error:
                raise self._failures.invalid(str(error)) from error
            events: list[Event] = []
            self._failure = self._parse(datas, events)
            if events:
                return events
        self._conclude()
        return None

    def _conclude(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._progress.num_events == 0:
            raise self._failures.empty()
        if not self._progress.is_whole:
            raise self._failures.cut()

    def _parse(self, datas: list[bytes], events: list[Event]) -> ExpertError | None:
        """Add what is good to ``events``; return what is wrong with the first that is not."""
        progress = self._progress
        for data in datas:
            if data == _DONE:
                progress.done()
                continue
            if progress.is_over:
                break
            try:
                event = orjson.loads(data)
            except orjson.JSONDecodeError:
                event = json_object(data)
            if type(event) is not dict:
                # A last event may lack its empty line; half an event is the mark of a cut.
                return self._failures.cut() if self._is_ended else self._malformed(data)
            try:
                progress.note(event)
            except ReportedError as report:
                return self._failures.reported(report.given)
            except MalformedEventError as error:
                return self._failures.invalid(str(error))
            events.append(event)
        return None

    def _malformed(self, data: bytes) -> ExpertError:
        return self._failures.invalid(f"malformed event in the stream: {excerpt(data)}")
