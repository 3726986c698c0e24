"""Running an engine over scripted upstreams."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from crossroads.gateway.contracts import Choice, Tally
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.scripted import (
    FakeTime,
    Scripted,
    a_call,
)

CHOICE = Choice(model="a", fallbacks=("b", "c"))


def an_engine(*upstreams: Scripted, **settings: Any) -> tuple[Engine, FakeTime]:
    fake = FakeTime()
    engine = Engine(
        {upstream.name: upstream for upstream in upstreams},
        EngineSettings(**settings),
        clock=fake,
        sleep=fake.sleep,
        rng=random.Random(7),
    )
    return engine, fake


def run_complete(engine: Engine, choice: Choice = CHOICE, **body: Any) -> tuple[Any, Tally]:
    tally = Tally()
    return asyncio.run(engine.complete(a_call(**body), choice, tally)), tally


def failure_of(engine: Engine, choice: Choice = CHOICE) -> tuple[ExpertError, Tally]:
    tally = Tally()
    with pytest.raises(ExpertError) as raised:
        asyncio.run(engine.complete(a_call(), choice, tally))
    return raised.value, tally


def tried(tally: Tally) -> list[tuple[str, int, str]]:
    return [(attempt.model, attempt.status, attempt.code) for attempt in tally.attempts]
