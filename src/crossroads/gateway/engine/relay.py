"""One stream on its way to the client, perhaps of several parts by several models."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from crossroads.gateway.call import Event
from crossroads.gateway.contracts import CANCELLED, Usage
from crossroads.gateway.engine.answers import tokens_of, total
from crossroads.gateway.engine.continuation import can_continue, continued_stops
from crossroads.gateway.engine.faults import fail, remedy
from crossroads.gateway.engine.fleet import Fleet, Stop
from crossroads.gateway.engine.health import Try
from crossroads.gateway.engine.plan import Plan
from crossroads.gateway.engine.readers import reader_of
from crossroads.gateway.engine.splice import Splice, splice_of
from crossroads.prompts.experts.base import ExpertError


class Opened(NamedTuple):
    """A stream that gave its first batch of events."""

    stop: Stop
    attempt: Try
    events: AsyncGenerator[list[Event], None]
    batch: list[Event]


class Relay:
    """Keeps the tally of a stream, and joins its parts.

    Parameters
    ----------
    fleet : the models there are
    plan : that opened the stream
    opened : its first part
    names : models of the choice, for a continuation
    """

    __slots__ = (
        *("_attempt", "_dialect", "_fleet", "_head", "_is_running", "_names", "_order", "_parts"),
        *("_plan", "_prefix", "_reader", "_size", "_splice", "_stop"),
    )

    def __init__(self, fleet: Fleet, plan: Plan, opened: Opened, names: tuple[str, ...]) -> None:
        self._fleet = fleet
        self._plan = plan
        self._names = names
        self._stop, self._attempt = opened.stop, opened.attempt
        self._order = opened.stop.order  # of the client's own request
        self._dialect = self._order.dialect
        self._head = opened.batch[0]
        self._reader = reader_of(self._dialect)
        self._parts: list[Usage] = []  # what each part used, in order
        self._size = 0  # characters of the parts before this one
        self._prefix = 0  # characters this part got as a prefill
        self._splice: Splice | None = None
        self._is_running = True
        tally, phases = plan.tally, plan.call.phases
        tally.model = opened.stop.model
        tally.dialect = self._dialect
        phases.first_token = phases.total

    def feed(self, batch: list[Event]) -> list[Event]:
        """Return what the client gets of a batch."""
        if self._splice is not None:
            batch = self._splice.feed(batch)
        self._reader.note(batch)
        return batch

    def end(self) -> None:
        """The answer is whole."""
        usage = self._end_part(is_whole=True)
        self._attempt.succeed(usage, is_stream=True)
        tally = self._plan.tally
        tally.answer = self._reader.answer()
        tally.is_complete = True

    def give_up(self) -> None:
        """Nobody waits for the rest; nothing to do where the last part already ended."""
        if self._is_running:
            self._attempt.give_up(CANCELLED, self._end_part(is_whole=False))

    def continuation(self, error: ExpertError) -> Plan:
        """Return the plan by which the broken answer goes on. Raises the error for the client."""
        usage = self._end_part(is_whole=False)
        plan = self._plan
        self._attempt.fail(error, usage, rest_s=plan.rest_s(error))
        text = self._reader.text
        settings = self._fleet.settings
        can = settings.continuation.enabled and can_continue(self._order, self._reader)
        if not can or remedy(error) == "refuse" or not plan.has_attempts_left:
            fail(plan.tally.attempts, error)
        at = self._names.index(self._stop.model)
        names = (*self._names[at + 1 :], *self._names[:at], self._stop.model)
        stops = continued_stops(self._fleet, self._order, names, text)
        if not stops:
            fail(plan.tally.attempts, error)
        self._prefix = len(text)
        return Plan(self._fleet, plan.call, plan.tally, stops, plan.deadline, is_continuation=True)

    def go_on(self, opened: Opened) -> None:
        """Take the first batch's stream for the next part of the answer."""
        tally = self._plan.tally
        tally.writers = (*(tally.writers or (self._stop.model,)), opened.stop.model)
        self._stop, self._attempt = opened.stop, opened.attempt
        self._is_running = True
        self._size = self._reader.size
        before = total(self._parts) or Usage()
        self._splice = splice_of(self._dialect, self._head, self._reader, before)

    def close(self) -> None:
        """Tell the tally what the client got."""
        tally, reader = self._plan.tally, self._reader
        tally.model = self._stop.model
        tally.text = reader.text
        tally.finish = reader.finish
        tally.usage = total(self._parts)

    def _end_part(self, *, is_whole: bool) -> Usage:
        """Count what this part used: as told, where its upstream came to the end of telling."""
        self._is_running = False
        told = self._reader.usage if self._splice is None else self._splice.usage
        if told is not None and is_whole:
            usage = told
        else:
            inputs = self._plan.call.input_tokens + tokens_of(self._prefix)
            outputs = tokens_of(self._reader.size - self._size)
            if told is not None:
                inputs, outputs = told.input_tokens, max(told.output_tokens, outputs)
            usage = Usage(inputs, outputs, True)
        self._parts.append(usage)
        return usage
