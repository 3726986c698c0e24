"""Anthropic's Messages API as an upstream, asked in its own dialect and in ``chat``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from crossroads.core.errors import InputError
from crossroads.gateway.contracts import Order, Upstream
from crossroads.gateway.upstreams import build_upstream
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard
from tests.core.http.servers import SHORT, RawServer, raw_server, response, stream_response
from tests.gateway.upstreams.chats import HELLO
from tests.gateway.upstreams.conftest import Run

NATIVE = {"model": "auto", "max_tokens": 9, "messages": HELLO["messages"], "top_k": 3}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [{"type": "text", "text": "Bonjour"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "Bonjour"},
    },
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 2},
    },
    {"type": "message_stop"},
]


def stream_of(*events: dict[str, Any]) -> bytes:
    datas = (b"event: %s\ndata: %s\n\n" % (e["type"].encode(), orjson.dumps(e)) for e in events)
    return stream_response(*datas)


@asynccontextmanager
async def anthropic(raw: bytes, **card: Any) -> AsyncIterator[tuple[Upstream, RawServer]]:
    async with raw_server(raw) as server:
        model = ModelCard(
            name="m", api="anthropic", endpoint=server.url, api_key="our-secret-key", **card
        )
        upstream = build_upstream(model, timeouts=SHORT)
        await upstream.start()
        try:
            yield upstream, server
        finally:
            await upstream.close()


def test_messages_pass_as_they_are_with_key_and_version(run: Run) -> None:
    headers = [
        (b"anthropic-beta", b"tools-2024"),
        (b"openai-project", b"p"),
        (b"x-api-key", b"theirs"),
        (b"authorization", b"Bearer theirs"),
    ]

    async def check() -> None:
        async with anthropic(response(orjson.dumps(MESSAGE))) as (upstream, server):
            assert upstream.speaks == {"messages", "chat"}
            got = await upstream.complete(Order(dialect="messages", body=NATIVE, headers=headers))
            assert got == MESSAGE
            received = server.requests[0]
            assert received.line == "POST /v1/messages HTTP/1.1"
            assert received.json == {**NATIVE, "model": "m"}
            assert received.headers["x-api-key"] == "our-secret-key"
            assert received.headers["anthropic-version"] == "2023-06-01"
            assert received.headers["anthropic-beta"] == "tools-2024"
            assert "authorization" not in received.headers
            assert "openai-project" not in received.headers

    run(check())


def test_a_clients_own_version_goes_before_the_default() -> None:
    async def check() -> None:
        async with anthropic(response(orjson.dumps(MESSAGE))) as (upstream, server):
            headers = [(b"anthropic-version", b"2099-01-01")]
            await upstream.complete(Order(dialect="messages", body=NATIVE, headers=headers))
            assert server.requests[0].headers["anthropic-version"] == "2099-01-01"

    asyncio.run(check())


def test_headers_of_the_card_go_before_those_of_a_client() -> None:
    async def check() -> None:
        own = {"Anthropic-Version": "2088-01-01"}
        async with anthropic(response(orjson.dumps(MESSAGE)), headers=own) as (upstream, server):
            for headers in ([], [(b"anthropic-version", b"2099-01-01"), (b"x-request-id", b"r")]):
                await upstream.complete(Order(dialect="messages", body=NATIVE, headers=headers))
                assert server.requests[-1].headers["anthropic-version"] == "2088-01-01"
                assert server.requests[-1].num_lines == len(server.requests[-1].headers)

    asyncio.run(check())


def test_a_card_may_speak_chat_alone() -> None:
    async def check() -> None:
        async with anthropic(response(orjson.dumps(MESSAGE)), speaks=("chat",)) as (upstream, _):
            assert upstream.speaks == {"chat"}
            got = await upstream.complete(Order(dialect="chat", body=HELLO))
            assert got["choices"][0]["message"]["content"] == "Bonjour"

    asyncio.run(check())


def test_chat_reaches_it_through_translation(run: Run) -> None:
    async def check() -> None:
        async with anthropic(response(orjson.dumps(MESSAGE)), max_output=77) as (upstream, server):
            got = await upstream.complete(Order(dialect="chat", body=HELLO))
            assert got["choices"][0]["message"]["content"] == "Bonjour"
            assert got["choices"][0]["finish_reason"] == "stop"
            assert got["usage"]["completion_tokens"] == 2
            assert server.requests[0].line == "POST /v1/messages HTTP/1.1"
            assert server.requests[0].json["max_tokens"] == 77
            bounded = {**HELLO, "max_tokens": 5}
            await upstream.complete(Order(dialect="chat", body=bounded))
            assert server.requests[1].json["max_tokens"] == 5

    run(check())


def test_streams_come_as_events_or_as_chunks(run: Run) -> None:
    async def check() -> None:
        async with anthropic(stream_of(*EVENTS)) as (upstream, server):
            order = Order(dialect="messages", body=NATIVE)
            assert [event async for batch in upstream.stream(order) for event in batch] == EVENTS
            order = Order(dialect="chat", body=HELLO)
            chunks = [chunk async for batch in upstream.stream(order) for chunk in batch]
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
            text = "".join(choice["delta"].get("content") or "" for choice in choices)
            assert text == "Bonjour"
            assert choices[-1]["finish_reason"] == "stop"
            assert chunks[-1]["usage"]["prompt_tokens"] == 3
            assert [request.json["stream"] for request in server.requests] == [True, True]
            assert "stream_options" not in server.requests[1].json

    run(check())


@pytest.mark.parametrize("dialect", ["chat", "messages"])
def test_a_stream_without_its_last_event_was_cut(dialect: Any) -> None:
    async def check() -> None:
        async with anthropic(stream_of(*EVENTS[:-1])) as (upstream, _):
            with pytest.raises(ExpertError) as failed:
                async for _batch in upstream.stream(Order(dialect=dialect, body=NATIVE)):
                    pass
            assert failed.value.code == "upstream_cut"

    asyncio.run(check())


def test_leaving_a_translated_stream_closes_its_connection_at_once(run: Run) -> None:
    raw = stream_of(*EVENTS[:4])[: -len(b"0\r\n\r\n")]

    async def check() -> None:
        async with anthropic(raw) as (upstream, server):
            stream = upstream.stream(Order(dialect="chat", body=HELLO))
            await anext(stream)
            await stream.aclose()
            await asyncio.wait_for(server.gone.wait(), 0.2)

    run(check())


@pytest.mark.parametrize(
    ("status", "kind", "seen"),
    [
        (400, "invalid_request_error", (400, "upstream_error")),
        (401, "authentication_error", (502, "upstream_refused")),
        (403, "permission_error", (502, "upstream_refused")),
        (413, "request_too_large", (413, "upstream_error")),
        (429, "rate_limit_error", (429, "upstream_error")),
        (500, "api_error", (502, "upstream_error")),
        (529, "overloaded_error", (503, "upstream_error")),
    ],
)
@pytest.mark.parametrize("dialect", ["chat", "messages"])
def test_its_errors_are_told_like_everybody_elses(
    status: int, kind: str, seen: tuple[int, str], dialect: Any
) -> None:
    body = orjson.dumps({"type": "error", "error": {"type": kind, "message": "their words"}})

    async def check() -> None:
        async with anthropic(response(body, status=status)) as (upstream, _):
            with pytest.raises(ExpertError) as failed:
                await upstream.complete(Order(dialect=dialect, body=NATIVE))
            assert (failed.value.status, failed.value.code) == seen

    asyncio.run(check())


def test_an_error_in_its_stream_says_whether_it_was_overload() -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}

    async def check() -> None:
        async with anthropic(stream_of(*EVENTS[:4], overloaded)) as (upstream, _):
            stream = upstream.stream(Order(dialect="chat", body=HELLO))
            with pytest.raises(ExpertError, match="busy") as failed:
                async for _batch in stream:
                    pass
            assert failed.value.status == 503

    asyncio.run(check())


def test_what_cannot_be_translated_is_the_clients_mistake() -> None:
    async def check() -> None:
        async with anthropic(response(orjson.dumps(MESSAGE))) as (upstream, server):
            with pytest.raises(ExpertError, match="model 'm'") as failed:
                await upstream.complete(Order(dialect="chat", body={**HELLO, "n": 2}))
            assert (failed.value.status, failed.value.param) == (400, "n")
            assert not server.requests

    asyncio.run(check())


def test_dialects_the_api_does_not_have_are_refused() -> None:
    card = ModelCard(
        name="m", api="anthropic", endpoint="http://127.0.0.1:9", speaks=("chat", "responses")
    )
    with pytest.raises(InputError, match="responses is no part of the anthropic API"):
        build_upstream(card, timeouts=SHORT)
