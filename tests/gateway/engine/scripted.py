"""Upstreams that do what their script says, and a clock that runs only when somebody sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from crossroads.gateway.call import Body, Call, Dialect, Event
from crossroads.gateway.contracts import Choice, Order, Tally
from crossroads.gateway.engine import Engine
from crossroads.prompts.experts.base import ExpertError

WORDS = ("The ", "quick ", "brown ", "fox ", "jumps ", "over ", "it.")
TEXT = "".join(WORDS)
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def chunk(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> Event:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 17, "model": "up"}
    return {**head, "choices": [choice], **fields}


def chunks(words: Sequence[str] = WORDS, *, usage: bool = True, id: str = "up") -> list[Event]:
    events = [chunk({"role": "assistant", "content": ""}, id=id)]
    events += [chunk({"content": word}, id=id) for word in words]
    events.append(chunk({}, "stop", id=id))
    if usage:
        events.append({**chunk({}, id=id), "choices": [], "usage": USAGE})
    return events


def answer(text: str = TEXT, *, usage: dict[str, Any] | None = USAGE, **message: Any) -> Body:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": "stop",
    }
    told = {"usage": usage} if usage else {}
    return {"id": "up", "object": "chat.completion", "created": 17, "choices": [choice], **told}


@dataclass
class Step:
    """What an upstream does with one order.

    ``events`` of a stream until ``error`` comes or, with ``stalls``, nothing; ``answer`` or
    ``error`` for a whole answer. ``first_s`` is real time before the first byte.
    """

    events: Sequence[Event] = field(default_factory=chunks)
    answer: Body = field(default_factory=answer)
    error: Exception | None = None
    stalls: bool = False
    first_s: float = 0.0


def failing(status: int, code: str | None = "upstream_error", **fields: Any) -> Step:
    return Step(
        events=[], error=ExpertError(f"status {status}", status=status, code=code, **fields)
    )


def cut(after: int, events: Sequence[Event] | None = None, error: Exception | None = None) -> Step:
    events = chunks() if events is None else events
    broken = ExpertError("the stream broke off", code="upstream_cut")
    return Step(events=events[:after], error=error or broken)


class Scripted:
    """An upstream that takes one step of its script per order; the last one repeats.

    Attributes
    ----------
    orders : as they came
    num_cancelled : calls given up before their end
    """

    def __init__(
        self,
        name: str,
        *script: Step | Callable[[Order], Step],
        speaks: Sequence[Dialect] = ("chat",),
        batch: int = 1,
    ) -> None:
        self.name = name
        self.speaks = frozenset(speaks)
        self.orders: list[Order] = []
        self.num_cancelled = 0
        self.num_running = 0
        self.most_running = 0
        self._script = script or (Step(),)
        self._batch = batch

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def complete(self, order: Order) -> Body:
        step = self._next(order)
        try:
            await self._wait(step)
        finally:
            self.num_running -= 1
        if step.error is not None:
            raise step.error
        return step.answer

    async def stream(self, order: Order) -> AsyncGenerator[list[Event], None]:
        step = self._next(order)
        try:
            if step.first_s:
                await asyncio.sleep(step.first_s)
            for at in range(0, len(step.events), self._batch):
                yield list(step.events[at : at + self._batch])
            if step.stalls:
                await asyncio.Event().wait()
            if step.error is not None:
                raise step.error
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1

    async def _wait(self, step: Step) -> None:
        try:
            await asyncio.sleep(step.first_s)
            if step.stalls:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise

    def _next(self, order: Order) -> Step:
        step = self._script[min(len(self.orders), len(self._script) - 1)]
        self.orders.append(order)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        return step(order) if callable(step) else step


class FakeTime:
    """A clock that stands still but for ``sleep``, which returns at once and is remembered."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def a_call(dialect: Dialect = "chat", *, is_stream: bool = False, **body: Any) -> Call:
    messages = [{"role": "user", "content": "Which animal jumps?"}]
    body = {"model": "auto", "messages": messages, **body}
    if is_stream:
        body["stream"] = True
    return Call(dialect=dialect, model="auto", body=body, is_stream=is_stream, size=80)


async def gathered(engine: Engine, call: Call, choice: Choice, tally: Tally) -> list[Event]:
    """Return all events a client gets."""
    events: list[Event] = []
    async with aclosing(engine.stream(call, choice, tally)) as batches:
        async for batch in batches:
            events += batch
    return events


async def gathered_until(
    engine: Engine, call: Call, choice: Choice, tally: Tally
) -> tuple[list[Event], ExpertError | None]:
    """Return the events a client gets, and the error the stream ends with, if it does."""
    events: list[Event] = []
    try:
        async with aclosing(engine.stream(call, choice, tally)) as batches:
            async for batch in batches:
                events += batch
    except ExpertError as error:
        return events, error
    return events, None


def text_of(events: Sequence[Event]) -> str:
    choices = [choice for event in events for choice in event.get("choices") or ()]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def num_openings(events: Sequence[Event]) -> int:
    choices = [choice for event in events for choice in event.get("choices") or ()]
    return sum("role" in choice["delta"] for choice in choices)


def finishes(events: Sequence[Event]) -> list[str]:
    choices = [choice for event in events for choice in event.get("choices") or ()]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
