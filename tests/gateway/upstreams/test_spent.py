"""Which failures say that the upstream had the request, and what it told of its work."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from crossroads.gateway.call import Dialect
from crossroads.gateway.contracts import Order, Upstream, Usage
from crossroads.gateway.upstreams import build_upstream
from crossroads.gateway.vocabulary import SpentError
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard
from tests.core.http.servers import SHORT, Received, raw_server, response, stream_response
from tests.gateway.upstreams.asking import order, upstream_of
from tests.gateway.upstreams.chats import HELLO, chat_answer

MESSAGE = {
    "type": "message",
    "content": [{"type": "text", "text": "hi"}],
    "usage": {"input_tokens": 100, "output_tokens": 90},
}


async def failure_of(upstream: Upstream, asked: Order, *, is_stream: bool) -> ExpertError:
    with pytest.raises(ExpertError) as failed:
        if is_stream:
            await anext(upstream.stream(asked))
        else:
            await upstream.complete(asked)
    return failed.value


def fails_with(answer: bytes, *, dialect: Dialect = "chat", is_stream: bool = False) -> ExpertError:
    async def ask() -> ExpertError:
        async with upstream_of(answer) as (upstream, _):
            return await failure_of(upstream, order(dialect), is_stream=is_stream)

    return asyncio.run(ask())


CUT = response(chat_answer("x" * 400)).replace(b"content-length: ", b"content-length: 9")


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("answer", [CUT, response(b"<html>"), b"no HTTP\r\n\r\n"])
def test_an_answer_that_broke_or_was_none_may_be_billed(answer: bytes, is_stream: bool) -> None:
    error = fails_with(answer, is_stream=is_stream)
    assert isinstance(error, SpentError)
    assert error.usage is None


def test_a_stream_that_ends_before_any_event_may_be_billed() -> None:
    assert isinstance(fails_with(stream_response(), is_stream=True), SpentError)


def test_an_answer_of_the_wrong_shape_still_tells_what_it_used() -> None:
    told = {"choices": "none", "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
    error = fails_with(response(orjson.dumps(told)))
    assert isinstance(error, SpentError)
    assert error.usage == Usage(9, 4)


def test_a_whole_answer_in_place_of_a_stream_tells_what_it_used() -> None:
    answer = response(orjson.dumps(MESSAGE))
    error = fails_with(answer, dialect="messages", is_stream=True)
    assert isinstance(error, SpentError)
    assert error.usage == Usage(100, 90)


def test_a_message_that_cannot_be_translated_tells_what_it_used() -> None:
    answer = {**MESSAGE, "content": [{"type": "text", "text": ["hi"]}]}

    async def check() -> None:
        async with raw_server(response(orjson.dumps(answer))) as server:
            card = ModelCard(name="m", endpoint=server.url, api="anthropic")
            upstream = build_upstream(card, timeouts=SHORT)
            await upstream.start()
            error = await failure_of(upstream, order(), is_stream=False)
            await upstream.close()
        assert isinstance(error, SpentError)
        assert error.usage == Usage(100, 90)

    asyncio.run(check())


@pytest.mark.parametrize("is_stream", [False, True])
def test_silence_after_the_request_may_be_billed_and_no_time_to_ask_is_not(is_stream: bool) -> None:
    async def silent(_: Received, __: asyncio.StreamWriter) -> None:
        """Say nothing, and keep the connection."""

    async def check() -> None:
        async with upstream_of(silent) as (upstream, _):
            error = await failure_of(upstream, order(), is_stream=is_stream)
            assert isinstance(error, SpentError)
            over = Order(dialect="chat", body=HELLO, deadline=time.monotonic() - 1)
            unasked = await failure_of(upstream, over, is_stream=is_stream)
        assert unasked.status == error.status == 504
        assert not isinstance(unasked, SpentError)

    asyncio.run(check())


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_answer_of_another_status_is_not_billed(status: int) -> None:
    assert not isinstance(fails_with(response(b"{}", status=status)), SpentError)


def test_where_nobody_listens_nothing_is_billed() -> None:
    async def check() -> None:
        upstream = build_upstream(
            ModelCard(name="m", endpoint="http://127.0.0.1:9/v1"), timeouts=SHORT
        )
        await upstream.start()
        error = await failure_of(upstream, order(), is_stream=False)
        await upstream.close()
        assert not isinstance(error, SpentError)

    asyncio.run(check())
