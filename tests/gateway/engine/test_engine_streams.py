"""The tally of streams, clients that leave, reloads and health."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crossroads.gateway.contracts import Choice, Tally, Usage
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.running import CHOICE, an_engine, failure_of, run_complete, tried
from tests.gateway.engine.scripted import (
    TEXT,
    Scripted,
    Step,
    a_call,
    chunk,
    chunks,
    cut,
    failing,
    gathered,
    gathered_until,
)


def test_a_stream_fills_the_tally_with_the_answer_it_amounts_to() -> None:
    engine, _ = an_engine(Scripted("a"))
    call, tally = a_call(is_stream=True), Tally()
    events = asyncio.run(gathered(engine, call, Choice(model="a"), tally))
    assert events == chunks()
    assert (tally.text, tally.finish, tally.is_complete) == (TEXT, "stop", True)
    assert tally.usage == Usage(7, 5)
    assert tally.answer is not None
    assert tally.answer["choices"][0]["message"] == {"role": "assistant", "content": TEXT}
    assert tally.answer["usage"]["total_tokens"] == 12
    assert call.phases.first_token is not None


def test_a_client_that_leaves_a_stream_cancels_upstream_and_pays_for_what_was_produced() -> None:
    async def main() -> None:
        upstream = Scripted("a", Step(stalls=True, events=chunks()[:4]))
        engine, _ = an_engine(upstream)
        tally = Tally()
        task = asyncio.create_task(
            gathered(engine, a_call(is_stream=True), Choice(model="a"), tally)
        )
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert upstream.num_cancelled == 1
        assert tally.text == "The quick brown "
        assert not tally.is_complete
        assert tally.answer is None
        assert tally.usage == Usage(21, 4, True)
        assert tried(tally) == [("a", 0, "cancelled")]
        assert tally.attempts[0].usage == tally.usage
        assert engine.health()["a"]["in_flight"] == 0

    asyncio.run(main())


def test_a_client_that_leaves_before_an_answer_cancels_upstream_and_pays_for_the_prompt() -> None:
    async def main(is_stream: bool) -> None:
        upstream = Scripted("a", Step(stalls=True, events=[]))
        engine, _ = an_engine(upstream, Scripted("b"))
        tally, call = Tally(), a_call(is_stream=is_stream)
        work = (gathered(engine, call, CHOICE, tally), engine.complete(call, CHOICE, tally))
        work[is_stream].close()
        task: asyncio.Task[Any] = asyncio.create_task(work[not is_stream])
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert upstream.num_cancelled == 1
        assert tried(tally) == [("a", 0, "cancelled")]
        assert tally.usage == Usage(21, 0, True)
        assert tally.model == "a"
        assert engine.health()["a"]["num_failures"] == 0

    asyncio.run(main(False))
    asyncio.run(main(True))


def test_a_slow_client_gets_everything_and_upstream_is_read_no_faster() -> None:
    async def main() -> None:
        upstream = Scripted("a")
        engine, _ = an_engine(upstream)
        tally = Tally()
        produced = 0
        stream = upstream.stream

        async def counting(order: Any) -> Any:
            nonlocal produced
            async for batch in stream(order):
                produced += 1
                yield batch

        upstream.stream = counting  # type: ignore[method-assign]
        got = 0
        async for _ in engine.stream(a_call(is_stream=True), Choice(model="a"), tally):
            got += 1
            await asyncio.sleep(0)
            assert produced == got
        assert got == len(chunks())
        assert tally.is_complete

    asyncio.run(main())


def test_a_new_engine_adopts_what_the_old_one_knows() -> None:
    upstream = Scripted("a", failing(500))
    old, fake = an_engine(upstream, Scripted("b"), retries=0, breaker={"consecutive_failures": 2})
    for _ in range(2):
        run_complete(old)
    new = Engine(
        {"a": upstream, "c": Scripted("c")}, EngineSettings(), clock=fake, sleep=fake.sleep
    )
    new.adopt(old)
    health = new.health()
    assert set(health) == {"a", "c"}
    assert health["a"]["state"] == "open"
    assert health["a"]["num_failures"] == 2
    assert health["c"]["num_calls"] == 0
    _, tally = run_complete(new, Choice(model="a", fallbacks=("c",)))
    assert [attempt.model for attempt in tally.attempts] == ["c"]


def test_an_adopted_breaker_goes_on_by_the_new_settings() -> None:
    upstream = Scripted("a", failing(500))
    old, fake = an_engine(upstream, retries=0)
    new = Engine(
        {"a": upstream},
        EngineSettings.model_validate({"retries": 0, "breaker": {"consecutive_failures": 1}}),
        clock=fake,
        sleep=fake.sleep,
    )
    new.adopt(old)
    failure_of(new, Choice(model="a"))
    assert old.health()["a"]["state"] == new.health()["a"]["state"] == "open"


def test_nobody_waits_for_a_retry_that_the_breaker_would_refuse() -> None:
    engine, fake = an_engine(
        Scripted("a", failing(500)), Scripted("b"), retries=3, breaker={"consecutive_failures": 2}
    )
    _, tally = run_complete(engine)
    assert [attempt.model for attempt in tally.attempts] == ["a", "a", "b"]
    assert len(fake.slept) == 1


def test_a_probe_whose_client_leaves_makes_room_for_another() -> None:
    async def main() -> None:
        first = Scripted("a", failing(500), Step(stalls=True), Step())
        engine, fake = an_engine(first, retries=0, breaker={"consecutive_failures": 1, "probes": 1})
        choice = Choice(model="a")
        with pytest.raises(ExpertError):
            await engine.complete(a_call(), choice, Tally())
        fake.now += 10.0
        task = asyncio.create_task(engine.complete(a_call(), choice, Tally()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.health()["a"]["state"] == "half_open"
        await engine.complete(a_call(), choice, Tally())
        assert engine.health()["a"]["state"] == "closed"

    asyncio.run(main())


def test_health_is_plain_data_with_latencies_and_the_last_error() -> None:
    engine, fake = an_engine(Scripted("a", failing(500), Step()), retries=1)
    run_complete(engine, Choice(model="a"))
    fake.now += 1.0
    health = engine.health()["a"]
    assert health["state"] == "closed"
    assert health["num_calls"] == 2
    assert health["failure_share"] == 0.5
    assert health["last_error"] == "status 500"
    assert health["answer_s"] == 0.0
    assert health["first_event_s"] is None
    assert health["in_flight"] == 0
    assert health["state_for_s"] >= 1.0


def test_the_time_to_a_streams_first_event_is_averaged() -> None:
    engine, _ = an_engine(Scripted("a"))
    asyncio.run(gathered(engine, a_call(is_stream=True), Choice(model="a"), Tally()))
    health = engine.health()["a"]
    assert (health["first_event_s"], health["answer_s"]) == (0.0, None)


def test_a_tool_call_in_a_stream_is_put_together() -> None:
    call = {"index": 0, "id": "call_1", "type": "function"}
    events = [
        chunk({"role": "assistant", "content": None}),
        chunk({"tool_calls": [{**call, "function": {"name": "look", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
        chunk({}, "tool_calls"),
    ]
    engine, _ = an_engine(Scripted("a", Step(events=events)))
    tally = Tally()
    asyncio.run(gathered(engine, a_call(is_stream=True), Choice(model="a"), tally))
    assert tally.answer is not None
    choice = tally.answer["choices"][0]
    assert choice["finish_reason"] == tally.finish == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {
        "name": "look",
        "arguments": '{"at":1}',
    }
    assert tally.usage == Usage(21, 3, True)  # "look" and its arguments are twelve characters


def test_a_stream_that_breaks_while_calling_a_tool_ends_with_an_error() -> None:
    fragment = {"index": 0, "id": "c", "function": {"name": "look", "arguments": "{"}}
    events = [chunk({"role": "assistant"}), chunk({"tool_calls": [fragment]})]
    second = Scripted("b")
    engine, _ = an_engine(Scripted("a", cut(2, events)), second)
    tally = Tally()
    got, error = asyncio.run(gathered_until(engine, a_call(is_stream=True), CHOICE, tally))
    assert got == events
    assert error is not None
    assert error.code == "upstream_cut"
    assert second.orders == []
    assert not tally.is_complete
    assert tally.answer is None
