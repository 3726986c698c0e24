"""Answers of an OpenAI-compatible upstream, refusals, and many calls at a time."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import orjson
import pytest

from crossroads.core.errors import InputError
from crossroads.core.http.timeouts import Timeouts
from crossroads.gateway.call import Dialect
from crossroads.gateway.contracts import Order, Upstream
from crossroads.gateway.upstreams import UpstreamSettings, build_upstream, build_upstreams
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard
from tests.core.http.servers import SHORT, RawServer, Received, eventually, raw_server, response
from tests.gateway.upstreams.asking import (
    ALL,
    ANSWERS,
    ERROR,
    order,
    upstream_of,
)
from tests.gateway.upstreams.chats import HELLO, chat_answer
from tests.gateway.upstreams.conftest import Run

# --- answers -------------------------------------------------------------------------------------

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
        (b"anthropic-version", b"2023-06-01"),
        (b"x-my-header", b"listed by the operator"),
        (b"x-team", b"the-clients"),
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
                "x-my-header": "listed by the operator",
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
