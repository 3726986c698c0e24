"""The fault table over real sockets: the HTTP upstream against a server that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from crossroads.core.http.timeouts import Timeouts
from crossroads.gateway.call import Event
from crossroads.gateway.contracts import Choice, Tally
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.gateway.upstreams import build_upstreams
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard
from tests.gateway.engine.scripted import a_call, finishes, gathered_until, num_openings, text_of
from tests.gateway.fake_upstream import TEXT, FakeUpstream

SHORT = Timeouts(connect=5.0, first_byte=0.5, idle=0.5, total=20.0)
LONG = Timeouts()
BEFORE = (
    *("status-429", "status-500", "status-503", "stall-0", "slow-30"),
    *("html", "hangup", "empty", "cut-0", "malformed-0", "down"),
)
AFTER = ("cut-5", "stall-5", "malformed-5")


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as running:
        yield running


def card_of(name: str, upstream: FakeUpstream) -> ModelCard:
    url = "http://127.0.0.1:9/v1" if name == "down" else upstream.url
    return ModelCard(name=name, endpoint=url)


async def ask(
    upstream: FakeUpstream,
    *models: str,
    is_stream: bool = True,
    prefills: tuple[str, ...] = (),
    timeouts: Timeouts = SHORT,
) -> tuple[str, list[Event], ExpertError | None, Tally]:
    """Ask the first model, with the others as its fallbacks."""
    upstreams = build_upstreams((card_of(name, upstream) for name in models), timeouts=timeouts)
    async with AsyncExitStack() as stack:
        for started in upstreams.values():
            await started.start()
            stack.push_async_callback(started.close)
        engine = Engine(upstreams, EngineSettings(retries=0), prefills=prefills)
        choice = Choice(model=models[0], fallbacks=models[1:])
        tally, call = Tally(), a_call(is_stream=is_stream)
        if is_stream:
            events, error = await gathered_until(engine, call, choice, tally)
            return text_of(events), events, error, tally
        try:
            body = await engine.complete(call, choice, tally)
        except ExpertError as failure:
            return "", [], failure, tally
        return body["choices"][0]["message"]["content"], [], None, tally


@pytest.mark.parametrize("fault", BEFORE)
def test_a_fault_before_the_first_event_is_hidden_by_a_fallback(
    upstream: FakeUpstream, fault: str
) -> None:
    text, events, error, tally = asyncio.run(ask(upstream, fault, "ok"))
    assert error is None
    assert text == TEXT
    assert num_openings(events) == 1
    assert tally.model == "ok"
    assert [attempt.model for attempt in tally.attempts] == [fault, "ok"]
    assert tally.is_complete


@pytest.mark.parametrize(
    "fault", ["status-429", "status-500", "slow-30", "html", "error", "hangup", "cut", "down"]
)
def test_a_fault_of_a_whole_answer_is_hidden_by_a_fallback(
    upstream: FakeUpstream, fault: str
) -> None:
    text, _, error, tally = asyncio.run(ask(upstream, fault, "ok", is_stream=False))
    assert error is None
    assert text == TEXT
    assert [attempt.model for attempt in tally.attempts] == [fault, "ok"]
    assert tally.attempts[0].status != 200


@pytest.mark.parametrize("fault", AFTER)
def test_a_fault_after_the_first_event_is_continued_by_prefill(
    upstream: FakeUpstream, fault: str
) -> None:
    text, events, error, tally = asyncio.run(ask(upstream, fault, "usage", prefills=("usage",)))
    assert error is None
    assert text == TEXT  # the server begins anew, and what it repeats is cut
    assert num_openings(events) == 1
    assert finishes(events) == ["stop"]
    assert tally.is_complete
    sent = upstream.requests[-1][1]["messages"][-1]
    assert sent["role"] == "assistant"
    assert TEXT.startswith(sent["content"])


@pytest.mark.parametrize("fault", [*AFTER, "midway", "half", "nofinish", "notchunk"])
def test_a_fault_after_the_first_event_never_looks_complete(
    upstream: FakeUpstream, fault: str
) -> None:
    text, events, error, tally = asyncio.run(ask(upstream, fault, "ok"))
    assert error is not None
    assert text
    assert TEXT.startswith(text)
    assert finishes(events) == []
    assert not tally.is_complete
    assert tally.answer is None
    assert tally.usage is not None
    assert tally.usage.is_estimated


def test_a_missing_done_after_the_finish_is_a_whole_answer(upstream: FakeUpstream) -> None:
    text, _, error, tally = asyncio.run(ask(upstream, "nodone", "ok"))
    assert (text, error) == (TEXT, None)
    assert [attempt.status for attempt in tally.attempts] == [200]


def test_a_stream_that_says_only_done_is_empty(upstream: FakeUpstream) -> None:
    text, _, error, tally = asyncio.run(ask(upstream, "onlydone", "ok"))
    assert (text, error) == (TEXT, None)
    assert tally.attempts[0].code == "upstream_empty"


def test_a_client_that_leaves_closes_the_connection_upstream(upstream: FakeUpstream) -> None:
    async def main() -> None:
        upstream.abandoned.clear()
        num_before = len(upstream.requests)
        task = asyncio.create_task(ask(upstream, "stall-3", "ok", timeouts=LONG))
        while len(upstream.requests) == num_before:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(upstream.abandoned.wait, 10.0)

    asyncio.run(main())
