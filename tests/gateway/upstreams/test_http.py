"""Every way an OpenAI-compatible upstream can answer, and fail to, over real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
import pytest

from crossroads.core.errors import InputError
from crossroads.gateway.call import Dialect, Event
from crossroads.gateway.contracts import Order, Upstream
from crossroads.gateway.upstreams import UpstreamSettings, build_upstream, build_upstreams
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.experts.http import Timeouts
from crossroads.prompts.pool import ModelCard
from tests.gateway.upstreams.conftest import Run
from tests.gateway.upstreams.servers import (
    HELLO,
    SHORT,
    Answer,
    RawServer,
    Received,
    chat_answer,
    chat_chunk,
    eventually,
    raw_server,
    response,
    stream_response,
)

ALL: tuple[Dialect, ...] = ("chat", "completions", "embeddings", "responses", "messages")
ERROR = {"message": "no more\ntokens", "type": "some_type", "code": "some_code", "param": "prompt"}
DONE = b"data: [DONE]\n\n"
GOOD = [chat_chunk(""), chat_chunk("a"), chat_chunk("b"), chat_chunk(None, "stop"), DONE]


@asynccontextmanager
async def upstream_of(
    answer: Answer | bytes, *, settings: UpstreamSettings | None = None, **card: Any
) -> AsyncIterator[tuple[Upstream, RawServer]]:
    """An upstream with a card like this one, on a server that answers so."""
    async with raw_server(answer) as server:
        model = ModelCard(name="m", endpoint=server.url, speaks=ALL, **card)
        upstream = build_upstream(model, timeouts=SHORT, settings=settings)
        await upstream.start()
        try:
            yield upstream, server
        finally:
            await upstream.close()


async def read(upstream: Upstream, order: Order) -> tuple[list[Event], ExpertError | None]:
    """Return all events of a stream, and how it failed if it did."""
    events: list[Event] = []
    try:
        async for batch in upstream.stream(order):
            assert batch
            events += batch
    except ExpertError as error:
        return events, error
    return events, None


def order(dialect: Dialect = "chat", **fields: Any) -> Order:
    return Order(dialect=dialect, body={**HELLO, **fields})


def texts(events: list[Event]) -> str:
    choices = (choice for event in events for choice in event["choices"])
    return "".join(choice["delta"].get("content", "") for choice in choices)


# --- answers -------------------------------------------------------------------------------------

ANSWERS: dict[Dialect, dict[str, Any]] = {
    "chat": orjson.loads(chat_answer()),
    "completions": {"id": "c", "choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]},
    "embeddings": {"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "model": "x"},
    "responses": {"id": "r", "object": "response", "output": [], "error": None, "new": 1},
    "messages": {"id": "m", "type": "message", "content": [{"type": "text", "text": "hi"}]},
}
PATHS = {"chat": "chat/completions"}


@pytest.mark.parametrize("dialect", ALL)
def test_each_dialect_has_its_path_and_its_answer_comes_back_untouched(
    run: Run, dialect: Dialect
) -> None:
    async def check() -> None:
        answer = response(orjson.dumps(ANSWERS[dialect]))
        async with upstream_of(answer, upstream_model="their/name") as (upstream, server):
            got = await upstream.complete(order(dialect, unknown={"kept": [1]}))
            assert got == ANSWERS[dialect]
            received = server.requests[0]
            assert received.line == f"POST /v1/{PATHS.get(dialect, dialect)} HTTP/1.1"
            assert received.json == {**HELLO, "model": "their/name", "unknown": {"kept": [1]}}

    run(check())


def test_only_headers_meant_for_upstreams_are_sent_and_keys_are_ours(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "our-secret-key")
    given = [
        (b"authorization", b"Bearer the-clients-key"),
        (b"x-api-key", b"the-clients-key"),
        (b"cookie", b"a=b"),
        (b"host", b"169.254.169.254"),
        (b"content-length", b"0"),
        (b"transfer-encoding", b"chunked"),
        (b"traceparent", b"00-abc-def-01"),
        (b"openai-project", b"p1"),
        (b"idempotency-key", b"twice\r\nx-evil: 1"),
        (b"tracestate", b"\xff"),
    ]

    async def check() -> None:
        async with upstream_of(
            response(chat_answer()), api_key="${UPSTREAM_KEY}", headers={"X-Team": "a"}
        ) as (upstream, server):
            await upstream.complete(Order(dialect="chat", body=HELLO, headers=given))
            assert server.requests[0].headers == {
                "host": f"127.0.0.1:{server.port}",
                "content-type": "application/json",
                "accept-encoding": "identity",
                "x-team": "a",
                "authorization": "Bearer our-secret-key",
                "traceparent": "00-abc-def-01",
                "openai-project": "p1",
                "content-length": str(len(server.requests[0].body)),
            }

    run(check())


def test_nothing_in_a_request_chooses_the_host(run: Run) -> None:
    async def check() -> None:
        async with upstream_of(response(chat_answer())) as (upstream, server):
            evil = {
                "model": "http://169.254.169.254/latest",
                "endpoint": "http://169.254.169.254",
                "base_url": "http://169.254.169.254",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}
                        ],
                    }
                ],
            }
            await upstream.complete(Order(dialect="chat", body=evil))
            assert server.requests[0].json == {**evil, "model": "m"}

    run(check())


def test_a_whole_answer_is_asked_for_without_stream_options(run: Run) -> None:
    async def check() -> None:
        async with upstream_of(response(chat_answer())) as (upstream, server):
            asked = order(stream=True, stream_options={"include_usage": True})
            await upstream.complete(asked)
            assert server.requests[0].json == {**HELLO, "model": "m"}
            assert asked.body["stream"] is True

    run(check())


def test_a_large_request_arrives_whole(run: Run) -> None:
    async def check() -> None:
        async with upstream_of(response(chat_answer())) as (upstream, server):
            await upstream.complete(order(padding="x" * 3_000_000))
            assert len(server.requests[0].json["padding"]) == 3_000_000

    run(check())


def test_a_dialect_it_does_not_speak_is_refused_before_anything_is_sent() -> None:
    async def check() -> None:
        async with raw_server(response(b"{}")) as server:
            upstream = build_upstream(
                ModelCard(name="m", endpoint=server.url, speaks=("chat",)), timeouts=SHORT
            )
            await upstream.start()
            assert upstream.speaks == {"chat"}
            with pytest.raises(ExpertError, match="does not speak responses"):
                await upstream.complete(order("responses"))
            await upstream.close()
            assert not server.requests

    asyncio.run(check())


# --- failures before the first byte, alike for answers and streams -------------------------------


def refusal(status: int, error: Any = ERROR, **headers: str) -> bytes:
    return response(orjson.dumps({"error": error}), status=status, **headers)


BEFORE = [
    (refusal(400), 400, "some_code"),
    (refusal(401), 502, "upstream_refused"),
    (refusal(403), 502, "upstream_refused"),
    (refusal(404), 404, "some_code"),
    (refusal(408), 408, "some_code"),
    (refusal(409), 409, "some_code"),
    (refusal(413), 413, "some_code"),
    (refusal(422), 422, "some_code"),
    (refusal(429), 429, "some_code"),
    (refusal(500), 502, "upstream_error"),
    (refusal(503), 503, "some_code"),
    (refusal(529, {"type": "overloaded_error", "message": "x"}), 503, "upstream_error"),
    (refusal(302, location="http://169.254.169.254/"), 502, "upstream_error"),
    (refusal(204), 502, "upstream_error"),
    (refusal(400, {"message": "bad", "code": "invalid_api_key"}), 502, "upstream_refused"),
    (refusal(400, "only text"), 400, "upstream_error"),
    (refusal(429, {"message": 5, "code": 6}), 429, "6"),
    (response(b"[1]", status=404), 404, "upstream_error"),
    (response(b"Traceback:\nit broke", status=500), 502, "upstream_error"),
    (refusal(200), 502, "some_code"),
    (refusal(200, {"message": "x", "code": 401}), 502, "upstream_refused"),
    (refusal(200, {"message": "x", "type": "overloaded_error"}), 503, "upstream_error"),
    (response(b"<html>It works!</html>", kind="text/html"), 502, "upstream_invalid"),
    (response(b""), 502, "upstream_invalid"),
    (response(b"null"), 502, "upstream_invalid"),
    (response(b'{"choices": {}}'), 502, "upstream_invalid"),
    (response(b'{"choices": [1]}'), 502, "upstream_invalid"),
    (response(b'{"choices": [{"message": null}]}'), 502, "upstream_invalid"),
    (response(b'{"choices": [NaN]}'), 502, "upstream_invalid"),
    (response(b"\x1f\x8b\x08", content_encoding="gzip"), 502, "upstream_invalid"),
    (b"garbage\r\n\r\n", 502, "upstream_invalid"),
]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("raw", "status", "code"), BEFORE, ids=range(len(BEFORE)))
def test_a_failure_before_the_first_event_is_an_error_with_a_status(
    raw: bytes, status: int, code: str, is_stream: bool
) -> None:
    async def check() -> None:
        async with upstream_of(raw, api_key="our-secret-key") as (upstream, server):
            with pytest.raises(ExpertError) as failed:
                if is_stream:
                    await anext(upstream.stream(order()))
                else:
                    await upstream.complete(order())
            error = failed.value
            assert (error.status, error.code) == (status, code)
            assert str(error).startswith(f"model 'm' at 127.0.0.1:{server.port}: ")
            assert "\n" not in str(error)
            assert len(server.requests) == 1
            if code == "upstream_refused":
                assert str(error).endswith("check api_key in the pool")
                assert "tokens" not in str(error)

    asyncio.run(check())


def test_fields_of_a_refusal_are_passed_on() -> None:
    async def check() -> None:
        async with upstream_of(refusal(429, retry_after="7")) as (upstream, _):
            with pytest.raises(ExpertError, match="status 429: no more tokens") as failed:
                await upstream.complete(order())
            error = failed.value
            assert (error.type, error.param, error.retry_after) == ("some_type", "prompt", 7)
            assert error.can_be_retried

    asyncio.run(check())


def test_a_secret_in_an_upstreams_words_is_struck_out() -> None:
    async def check() -> None:
        error = {"message": "key our-secret-key in team-secret is wrong", "code": "our-secret-key"}
        async with upstream_of(
            refusal(400, error), api_key="our-secret-key", headers={"x-team": "team-secret"}
        ) as (upstream, _):
            with pytest.raises(ExpertError) as failed:
                await upstream.complete(order())
            assert "key *** in *** is wrong" in str(failed.value)
            assert failed.value.code == "***"

    asyncio.run(check())


@pytest.mark.parametrize("is_stream", [False, True])
def test_silence_and_hanging_up_have_their_own_codes(run: Run, is_stream: bool) -> None:
    async def silent(_: Received, __: asyncio.StreamWriter) -> None:
        """Say nothing, and keep the connection."""

    async def hang_up(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def check() -> None:
        for answer, status, code in (
            (silent, 504, "upstream_timeout"),
            (hang_up, 503, "upstream_unavailable"),
        ):
            async with upstream_of(answer) as (upstream, _):
                with pytest.raises(ExpertError) as failed:
                    if is_stream:
                        await anext(upstream.stream(order()))
                    else:
                        await upstream.complete(order())
                assert (failed.value.status, failed.value.code) == (status, code)

    run(check())


def test_a_deadline_of_the_order_goes_before_the_upstreams_own(run: Run) -> None:
    async def silent(_: Received, __: asyncio.StreamWriter) -> None:
        """Say nothing, and keep the connection."""

    async def check() -> None:
        async with upstream_of(silent) as (upstream, server):
            late = Order(dialect="chat", body=HELLO, deadline=time.monotonic() + 0.1)
            with pytest.raises(ExpertError, match=r"no whole answer within 0\.1 s"):
                await upstream.complete(late)
            over = Order(dialect="chat", body=HELLO, deadline=time.monotonic() - 1)
            with pytest.raises(ExpertError) as failed:
                await upstream.complete(over)
            assert failed.value.code == "upstream_timeout"
            assert len(server.requests) == 1

    run(check())


def test_a_request_nested_too_deep_is_the_clients_mistake() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]

    async def check() -> None:
        async with upstream_of(response(chat_answer())) as (upstream, _):
            with pytest.raises(ExpertError, match="cannot be passed on") as failed:
                await upstream.complete(order(deep=deep))
            assert failed.value.status == 400

    asyncio.run(check())


# --- streams -------------------------------------------------------------------------------------

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


# --- many at a time ------------------------------------------------------------------------------


def test_more_calls_than_the_card_allows_wait_their_turn(run: Run) -> None:
    running = most = 0

    async def slow(_: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        writer.write(response(chat_answer()))

    async def check() -> None:
        async with upstream_of(slow, max_parallel=3) as (upstream, server):
            orders = [order() for _ in range(12)]
            await asyncio.gather(*(upstream.complete(each) for each in orders))
            assert (most, server.num_connections) == (3, 3)
            assert orders[0].phases.queue == 0
            assert orders[-1].phases.queue > 0.04

    run(check())


def test_a_full_queue_refuses_at_once_and_recovers(run: Run) -> None:
    async def slow(_: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(response(chat_answer()))

    async def check() -> None:
        small = UpstreamSettings(max_waiting=2)
        async with upstream_of(slow, max_parallel=1, settings=small) as (upstream, server):
            got = await asyncio.gather(
                *(upstream.complete(order()) for _ in range(5)), return_exceptions=True
            )
            refused = [error for error in got if isinstance(error, ExpertError)]
            assert [(error.status, error.code) for error in refused] == [
                (503, "upstream_queue_full")
            ] * 2
            assert all(error.retry_after and error.retry_after >= 1 for error in refused)
            assert len(server.requests) == 3
            await upstream.complete(order())

    run(check())


def _has_seen(server: RawServer, count: int) -> bool:
    return len(server.requests) == count


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_cancelled_call_gives_its_place_back(run: Run, is_stream: bool) -> None:
    async def silent(_: Received, __: asyncio.StreamWriter) -> None:
        """Say nothing, and keep the connection."""

    async def first(upstream: Upstream) -> None:
        if is_stream:
            await anext(upstream.stream(order()))
        else:
            await upstream.complete(order())

    async def check() -> None:
        async with upstream_of(silent, max_parallel=1) as (upstream, server):
            tasks = []
            for number in range(3):
                tasks.append(asyncio.ensure_future(first(upstream)))
                await eventually(partial(_has_seen, server, number + 1))
                tasks[-1].cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert all(task.cancelled() for task in tasks)

    run(check())


def test_models_of_one_server_share_its_connections(run: Run) -> None:
    async def check() -> None:
        async with raw_server(response(chat_answer())) as server:
            cards = [ModelCard(name=name, endpoint=server.url) for name in ("a", "b")]
            upstreams = build_upstreams(cards, timeouts=SHORT)
            for upstream in upstreams.values():
                await upstream.start()
            for name in ("a", "b", "a"):
                await upstreams[name].complete(order())
            await upstreams["a"].close()
            await upstreams["b"].complete(order())
            assert server.num_connections == 1
            assert [request.json["model"] for request in server.requests] == ["a", "b", "a", "b"]
            await upstreams["b"].close()

    run(check())


def test_a_responses_request_that_is_stored_is_not_sent_twice(run: Run) -> None:
    async def second_dies(request: Received, writer: asyncio.StreamWriter) -> None:
        if request.json.get("second"):
            writer.transport.abort()
        else:
            writer.write(response(orjson.dumps(ANSWERS["responses"])))

    async def check() -> None:
        for store, num_requests in ((True, 2), (False, 3)):
            async with upstream_of(second_dies) as (upstream, server):
                await upstream.complete(order("responses"))
                with pytest.raises(ExpertError):
                    await upstream.complete(order("responses", second=True, store=store))
                assert len(server.requests) == num_requests

    run(check())


# --- cards ---------------------------------------------------------------------------------------


def test_timeouts_of_a_card_go_before_those_of_the_server(run: Run) -> None:
    async def silent(_: Received, __: asyncio.StreamWriter) -> None:
        """Say nothing, and keep the connection."""

    async def check() -> None:
        async with raw_server(silent) as server:
            card = ModelCard(name="m", endpoint=server.url, timeouts={"first_byte": 0.1})
            upstream = build_upstream(card, timeouts=Timeouts())
            await upstream.start()
            with pytest.raises(ExpertError, match=r"no answer within 0\.1 s"):
                await upstream.complete(order())
            await upstream.close()

    run(check())


def test_a_key_that_is_not_set_stops_the_start() -> None:
    card = ModelCard(name="m", endpoint="http://127.0.0.1:9", api_key="${NO_SUCH_VARIABLE}")
    with pytest.raises(InputError, match="NO_SUCH_VARIABLE is not set"):
        asyncio.run(build_upstream(card, timeouts=SHORT).start())


def test_a_key_that_would_break_out_of_its_line_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BROKEN_KEY", "a\r\nx-evil: 1")
    card = ModelCard(name="m", endpoint="http://127.0.0.1:9", api_key="${BROKEN_KEY}")
    with pytest.raises(InputError, match="printable ASCII") as refused:
        asyncio.run(build_upstream(card, timeouts=SHORT).start())
    assert "evil" not in str(refused.value)


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "a b", "x:y", ""])
def test_a_card_cannot_set_what_the_connection_needs(name: str) -> None:
    card = ModelCard(name="m", endpoint="http://127.0.0.1:9", headers={name: "x"})
    with pytest.raises(InputError, match="headers"):
        build_upstream(card, timeouts=SHORT)
