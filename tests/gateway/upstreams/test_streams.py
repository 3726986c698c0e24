"""Streams of an OpenAI-compatible upstream: unusual, broken, abandoned, in every dialect."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import pytest

from crossroads.gateway.call import Dialect
from crossroads.gateway.upstreams import UpstreamSettings
from crossroads.prompts.experts.base import ExpertError
from tests.core.http.servers import Received, response, stream_response
from tests.gateway.upstreams.asking import (
    ANSWERS,
    DONE,
    ERROR,
    GOOD,
    order,
    read,
    texts,
    upstream_of,
)
from tests.gateway.upstreams.chats import chat_answer, chat_chunk
from tests.gateway.upstreams.conftest import Run

UNUSUAL = {
    "plain": stream_response(*GOOD),
    "one write": stream_response(b"".join(GOOD)),
    "bytes": stream_response(*(bytes([byte]) for byte in b"".join(GOOD))),
    "crlf": stream_response(*(event.replace(b"\n", b"\r\n") for event in GOOD)),
    "comments": stream_response(*(b": ping\n\n" + event for event in GOOD)),
    "no done": stream_response(*GOOD[:-1]),
    "done without its empty line": stream_response(*GOOD[:-1], b"data: [DONE]"),
    "after done": stream_response(*GOOD, chat_chunk("ignored")),
    "until close": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"".join(GOOD),
    "never ends": stream_response(*GOOD, end=False),
    "content type in capitals": stream_response(*GOOD).replace(b"text/event", b"Text/Event"),
}


@pytest.mark.parametrize("raw", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_but_whole_stream_arrives_whole(run: Run, raw: bytes) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        if b"chunked" not in raw:
            writer.close()

    async def check() -> None:
        async with upstream_of(answer) as (upstream, _):
            events, error = await read(upstream, order())
            assert error is None
            assert texts(events) == "ab"
            assert events == [orjson.loads(event[6:]) for event in GOOD[:-1]]

    run(check())


BROKEN = [
    ("cut", stream_response(*GOOD[:3], end=False), "upstream_cut", 3),
    ("cut before the first", stream_response(end=False), "upstream_cut", 0),
    ("half an event", stream_response(*GOOD[:2], GOOD[2][:20]), "upstream_cut", 2),
    ("no finish", stream_response(*GOOD[:3]), "upstream_cut", 3),
    ("malformed", stream_response(*GOOD[:2], b"data: {]\n\n", *GOOD[2:]), "upstream_invalid", 2),
    ("no object", stream_response(*GOOD[:2], b"data: 5\n\n", *GOOD[2:]), "upstream_invalid", 2),
    ("no chunk", stream_response(GOOD[0], b'data: {"a":1}\n\n', DONE), "upstream_invalid", 1),
    ("no choice", stream_response(b'data: {"choices":[1]}\n\n', DONE), "upstream_invalid", 0),
    (
        "an error",
        stream_response(*GOOD[:3], b"data: %s\n\n" % orjson.dumps({"error": ERROR}), DONE),
        "some_code",
        3,
    ),
    ("empty", stream_response(), "upstream_empty", 0),
    ("only done", stream_response(DONE), "upstream_empty", 0),
    ("bad chunk", stream_response(*GOOD[:2], end=False) + b"zz\r\n", "upstream_invalid", 2),
]


@pytest.mark.parametrize(
    ("raw", "code", "num_events"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_a_broken_stream_gives_its_good_events_and_then_an_error(
    run: Run, raw: bytes, code: str, num_events: int
) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async def check() -> None:
        async with upstream_of(answer) as (upstream, _):
            events, error = await read(upstream, order())
            assert error is not None
            assert (error.status, error.code) == (502, code)
            assert len(events) == num_events

    run(check())


def test_a_stalled_stream_ends_in_time_and_closes_its_connection(run: Run) -> None:
    async def check() -> None:
        async with upstream_of(stream_response(*GOOD[:3], end=False)) as (upstream, server):
            events, error = await read(upstream, order())
            assert texts(events) == "ab"
            assert error is not None
            assert (error.status, error.code) == (504, "upstream_timeout")
            await asyncio.wait_for(server.gone.wait(), 1)

    run(check())


def test_an_event_past_the_limit_ends_the_stream() -> None:
    async def check() -> None:
        small = UpstreamSettings(max_answer_mib=0.01)
        raw = stream_response(GOOD[0], chat_chunk("x" * 20_000), *GOOD[3:])
        async with upstream_of(raw, settings=small) as (upstream, _):
            _, error = await read(upstream, order())
            assert error is not None
            assert error.code == "upstream_invalid"

    asyncio.run(check())


def test_events_of_one_read_come_as_one_batch() -> None:
    async def check() -> None:
        async with upstream_of(stream_response(*GOOD)) as (upstream, _):
            batches = [batch async for batch in upstream.stream(order())]
            assert [len(batch) for batch in batches] == [4]

    asyncio.run(check())


def test_every_event_is_given_when_it_comes(run: Run) -> None:
    turn = asyncio.Event()

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_response(*GOOD[:2], end=False))
        await turn.wait()
        writer.write(b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in GOOD[2:]) + b"0\r\n\r\n")

    async def check() -> None:
        async with upstream_of(answer) as (upstream, _):
            stream = upstream.stream(order())
            assert len(await anext(stream)) == 2
            turn.set()
            assert len(await anext(stream)) == 2
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    run(check())


def test_leaving_a_stream_closes_its_connection_at_once(run: Run) -> None:
    async def check() -> None:
        async with upstream_of(stream_response(*GOOD[:2], end=False)) as (upstream, server):
            stream = upstream.stream(order())
            await anext(stream)
            await stream.aclose()
            await asyncio.wait_for(server.gone.wait(), 0.2)

    run(check())


def test_streams_keep_their_connection_too(run: Run) -> None:
    async def check() -> None:
        async with upstream_of(stream_response(*GOOD)) as (upstream, server):
            for _ in range(5):
                events, error = await read(upstream, order())
                assert (texts(events), error) == ("ab", None)
            assert server.num_connections == 1

    run(check())


@pytest.mark.parametrize(
    ("given", "stream_usage", "sent"),
    [
        (None, True, {"include_usage": True}),
        ({"include_usage": False, "more": 1}, True, {"include_usage": True, "more": 1}),
        ({"include_usage": True}, False, None),
    ],
)
def test_streams_are_asked_for_token_counts_unless_the_card_says_no(
    given: Any, stream_usage: bool, sent: Any
) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}

    async def check() -> None:
        raw = stream_response(*GOOD[:-1], b"data: %s\n\n" % orjson.dumps(usage), DONE)
        async with upstream_of(raw, stream_usage=stream_usage) as (upstream, server):
            asked = order() if given is None else order(stream_options=given)
            events, _ = await read(upstream, asked)
            assert events[-1] == usage
            assert server.requests[0].json.get("stream_options") == sent
            assert server.requests[0].json["stream"] is True

    asyncio.run(check())


def test_a_server_that_ignores_stream_still_answers_as_one() -> None:
    async def check() -> None:
        async with upstream_of(response(chat_answer("whole"))) as (upstream, _):
            events, error = await read(upstream, order())
            assert error is None
            assert texts(events) == "whole"
            assert events[-1]["choices"][0]["finish_reason"] == "stop"
            _, error = await read(upstream, order("responses"))
            assert error is not None
            assert error.code == "upstream_invalid"
        answer = response(orjson.dumps(ANSWERS["completions"]))
        async with upstream_of(answer) as (upstream, _):
            events, _ = await read(upstream, order("completions"))
            assert events == [ANSWERS["completions"]]

    asyncio.run(check())


def named(*events: dict[str, Any]) -> list[bytes]:
    return [b"event: %s\ndata: %s\n\n" % (e["type"].encode(), orjson.dumps(e)) for e in events]


DELTA = {"type": "response.output_text.delta", "delta": "a"}
FAILED = {"type": "response.failed", "response": {"error": {"code": "x", "message": "y"}}}


@pytest.mark.parametrize(
    ("dialect", "events", "code"),
    [
        ("responses", [DELTA, {"type": "response.completed"}], None),
        ("responses", [DELTA, {"type": "response.incomplete"}], None),
        ("responses", [DELTA], "upstream_cut"),
        ("responses", [DELTA, FAILED], "x"),
        ("responses", [DELTA, {"type": "error", "code": "z", "message": "w"}], "z"),
        ("messages", [{"type": "message_start"}, {"type": "message_stop"}], None),
        ("messages", [{"type": "message_start"}, {"type": "message_delta"}], "upstream_cut"),
        ("messages", [{"type": "ping"}, {"type": "error", "error": ERROR}], "some_code"),
    ],
)
def test_streams_of_other_dialects_are_whole_by_their_own_last_event(
    dialect: Dialect, events: list[dict[str, Any]], code: str | None
) -> None:
    async def check() -> None:
        async with upstream_of(stream_response(*named(*events))) as (upstream, _):
            got, error = await read(upstream, order(dialect))
            assert (error and error.code) == code
            good = [e for e in events if e["type"] not in {"error", "response.failed"}]
            assert got == good

    asyncio.run(check())


@pytest.mark.parametrize("last", [b"", DONE])
def test_done_does_not_make_a_message_whole(last: bytes) -> None:
    async def check() -> None:
        raw = stream_response(*named({"type": "message_start"}), last) if last else b""
        raw = raw or stream_response(*named({"type": "message_start"}))
        async with upstream_of(raw) as (upstream, _):
            _, error = await read(upstream, order("messages"))
            assert error is not None
            assert error.code == "upstream_cut"

    asyncio.run(check())


def test_a_broken_character_in_an_event_is_replaced_not_fatal() -> None:
    async def check() -> None:
        raw = stream_response(chat_chunk("aXb").replace(b"X", b"\xf0\x9f"), *GOOD[3:])
        async with upstream_of(raw) as (upstream, _):
            events, error = await read(upstream, order())
            assert error is None
            assert texts(events) == "a\ufffdb"

    asyncio.run(check())


def test_silence_before_a_stream_fails_is_the_upstreams_time(run: Run) -> None:
    async def check() -> None:
        async with upstream_of(stream_response(*GOOD[:3], end=False)) as (upstream, _):
            asked = order()
            began = time.perf_counter()
            _, error = await read(upstream, asked)
            assert error is not None and error.code == "upstream_timeout"
            assert asked.phases.upstream > 0.9 * (time.perf_counter() - began)

    run(check())


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_its_server_gave_up_is_a_failure(run: Run, reason: str) -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "hal"}, "finish_reason": reason}]}

    async def check() -> None:
        streamed = stream_response(*GOOD[:3], chat_chunk(None, reason), DONE)
        async with upstream_of(streamed) as (upstream, _):
            events, error = await read(upstream, order())
            assert error is not None
            assert (texts(events), error.code) == ("ab", "upstream_invalid")
        async with upstream_of(response(orjson.dumps(whole))) as (upstream, _):
            with pytest.raises(ExpertError, match="gave the answer up") as raised:
                await upstream.complete(order())
            assert raised.value.code == "upstream_invalid"

    run(check())
