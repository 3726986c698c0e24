"""What holds for every script of faults: bounds, whole answers, one opening, no leaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.gateway.contracts import Choice, Order, Tally, Usage
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.scripted import (
    FakeTime,
    Scripted,
    Step,
    a_call,
    answer,
    chunks,
    failing,
    finishes,
    gathered_until,
    num_openings,
    text_of,
)

LENGTH = 6
MODELS = ("a", "b", "c")
CHOICE = Choice(model="a", fallbacks=("b", "c"))
SETTINGS = EngineSettings(max_attempts=5, retries=1, breaker={"consecutive_failures": 3})

# One step of a model: (kind, events before the fault, whether it repeats a prefill).
FAULTS = st.tuples(
    st.sampled_from(["whole", "cut", "stall", "malformed", "429", "500", "400", "404", "empty"]),
    st.integers(0, LENGTH + 2),
    st.booleans(),
)
SCRIPTS = st.lists(st.lists(FAULTS, min_size=1, max_size=3), min_size=3, max_size=3)
BROKEN = {
    "cut": ("upstream_cut", 502),
    "stall": ("upstream_timeout", 504),
    "malformed": ("upstream_invalid", 502),
}


def word(model: str, index: int) -> str:
    return f"{model * 9}{index} "


def step(model: str, kind: str, after: int, echoes: bool) -> Callable[[Order], Step] | Step:
    """A model that says its own words, and goes on at the right one after a prefill."""
    if kind.isdigit():
        return failing(int(kind))
    if kind == "empty":
        return Step(events=[], answer={"choices": []})

    def answered(order: Order) -> Step:
        last = order.body["messages"][-1]
        so_far = last["content"] if last["role"] == "assistant" else ""
        num_done = len(so_far.split())
        words = [word(model, index) for index in range(num_done, LENGTH)]
        if echoes and so_far:
            words = [so_far, " ", *words]
        events = chunks(words)
        if kind == "whole":
            return Step(events=events, answer=answer("".join(words)))
        code, status = BROKEN[kind]
        return Step(events=events[:after], error=ExpertError(kind, code=code, status=status))

    return answered


def an_engine(
    scripts: list[list[tuple[str, int, bool]]], prefills: set[str]
) -> tuple[Engine, list[Scripted]]:
    fake = FakeTime()
    upstreams = [
        Scripted(name, *(step(name, *fault) for fault in script))
        for name, script in zip(MODELS, scripts, strict=True)
    ]
    engine = Engine(
        {upstream.name: upstream for upstream in upstreams},
        SETTINGS,
        prefills=prefills,
        clock=fake,
        sleep=fake.sleep,
        rng=random.Random(3),
    )
    return engine, upstreams


def check_attempts(engine: Engine, upstreams: list[Scripted], tally: Tally) -> None:
    assert len(tally.attempts) <= SETTINGS.max_attempts
    assert sum(len(upstream.orders) for upstream in upstreams) == len(tally.attempts)
    assert all(health["in_flight"] == 0 for health in engine.health().values())
    assert all(upstream.num_running == 0 for upstream in upstreams)
    for attempt in tally.attempts:
        assert (attempt.status == 200) == (attempt.code == "")


def indices(text: str) -> list[int]:
    return [int(part[-1]) for part in text.split()]


@settings(max_examples=150, deadline=None)
@given(SCRIPTS, st.sets(st.sampled_from(MODELS)))
def test_a_stream_is_whole_and_one_or_ends_with_an_error(
    scripts: list[list[tuple[str, int, bool]]], prefills: set[str]
) -> None:
    engine, upstreams = an_engine(scripts, prefills)
    tally = Tally()
    events, error = asyncio.run(gathered_until(engine, a_call(is_stream=True), CHOICE, tally))
    check_attempts(engine, upstreams, tally)
    text = text_of(events)
    assert tally.text == text
    assert tally.is_complete == (error is None)
    assert (tally.answer is not None) == tally.is_complete
    assert num_openings(events) <= 1
    assert len(finishes(events)) <= 1
    assert indices(text) == list(range(len(text.split())))  # no word lost, none twice
    if error is None:
        assert len(text.split()) == LENGTH
        assert finishes(events) == ["stop"]
        changes = [one[0] != other[0] for one, other in pairwise(text.split())]
        assert sum(changes) < len(tally.attempts)  # only where an attempt broke
        assert len({event["id"] for event in events}) == 1
    empty = [attempt for attempt in tally.attempts if attempt.code == "upstream_empty"]
    assert all(attempt.usage == Usage(21, 0, True) for attempt in empty)  # the prompt was read
    told = [attempt.usage for attempt in tally.attempts if attempt not in empty]
    parts = [usage for usage in told if usage is not None]
    if parts:
        total = Usage(
            sum(part.input_tokens for part in parts),
            sum(part.output_tokens for part in parts),
            any(part.is_estimated for part in parts),
        )
        assert tally.usage == total  # nothing that was produced is left unbilled
    else:
        assert events == []


@settings(max_examples=100, deadline=None)
@given(SCRIPTS)
def test_a_whole_answer_is_exactly_one_models_own(
    scripts: list[list[tuple[str, int, bool]]],
) -> None:
    engine, upstreams = an_engine(scripts, set())
    tally = Tally()
    try:
        body = asyncio.run(engine.complete(a_call(), CHOICE, tally))
    except ExpertError:
        assert not tally.is_complete
        assert tally.answer is None
    else:
        own = "".join(word(tally.model, index) for index in range(LENGTH))
        assert body == answer(own)
        assert tally.answer is body
        assert [attempt.status == 200 for attempt in tally.attempts].index(True) == (
            len(tally.attempts) - 1
        )
    check_attempts(engine, upstreams, tally)


def test_of_many_calls_at_once_only_k_probe_a_broken_model() -> None:
    async def main() -> None:
        fake = FakeTime()
        first = Scripted("a", failing(500), Step(first_s=0.01))
        engine = Engine(
            {"a": first, "b": Scripted("b")},
            EngineSettings(retries=0, breaker={"consecutive_failures": 1, "probes": 2}),
            clock=fake,
            sleep=fake.sleep,
        )
        choice = Choice(model="a", fallbacks=("b",))
        await engine.complete(a_call(), choice, Tally())
        assert engine.health()["a"]["state"] == "open"
        fake.now += 10.0
        tallies = [Tally() for _ in range(64)]
        await asyncio.gather(*(engine.complete(a_call(), choice, tally) for tally in tallies))
        assert first.most_running == 2
        assert len(first.orders) == 1 + 2
        assert all(tally.is_complete for tally in tallies)
        assert engine.health()["a"]["state"] == "closed"

    asyncio.run(main())


def test_the_same_seed_gives_the_same_attempts_64_ways_at_once() -> None:
    async def main() -> None:
        async def one() -> list[tuple[str, int]]:
            engine, _ = an_engine(
                [[("500", 0, False)], [("cut", 3, False)], [("whole", 0, True)]], {"b", "c"}
            )
            tally = Tally()
            await gathered_until(engine, a_call(is_stream=True), CHOICE, tally)
            return [(attempt.model, attempt.status) for attempt in tally.attempts]

        outcomes = await asyncio.gather(*(one() for _ in range(64)))
        assert all(outcome == outcomes[0] for outcome in outcomes)
        assert outcomes[0][-1] == ("c", 200)

    asyncio.run(main())
