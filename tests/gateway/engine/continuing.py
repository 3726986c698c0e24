"""Running streams that break, and models that go on."""

from __future__ import annotations

import asyncio
from typing import Any

from crossroads.gateway.call import Event
from crossroads.gateway.contracts import Choice, Tally
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.scripted import (
    FakeTime,
    Scripted,
    Step,
    a_call,
    chunks,
    gathered_until,
)

CHOICE = Choice(model="a", fallbacks=("b", "c"))
STALLED = ExpertError("no further bytes within 1 s", status=504, code="upstream_timeout")
MALFORMED = ExpertError("malformed event in the stream", code="upstream_invalid")


def an_engine(
    *upstreams: Scripted, prefills: tuple[str, ...] = ("a", "b", "c"), **settings: Any
) -> Engine:
    fake = FakeTime()
    return Engine(
        {upstream.name: upstream for upstream in upstreams},
        EngineSettings(**settings),
        prefills=prefills,
        clock=fake,
        sleep=fake.sleep,
    )


def run(
    engine: Engine, choice: Choice = CHOICE, **body: Any
) -> tuple[list[Event], ExpertError | None, Tally]:
    tally = Tally()
    events, error = asyncio.run(
        gathered_until(engine, a_call(is_stream=True, **body), choice, tally)
    )
    return events, error, tally


def goes_on(words: tuple[str, ...], *, echo: str = "", batch: int = 1) -> Scripted:
    """A model that continues with these words."""
    return Scripted("b", Step(events=chunks((echo, *words) if echo else words, id="other")))
