"""Experts of this process as upstreams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from crossroads.core.errors import UsageError
from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams import UpstreamSettings, build_upstream
from crossroads.gateway.upstreams.local import LocalUpstream
from crossroads.prompts.experts.base import (
    Chunk,
    Completion,
    ExpertError,
    Request,
    chunks_of,
    completion,
    usage_of,
)
from crossroads.prompts.pool import ModelCard
from tests.core.http.servers import SHORT
from tests.gateway.upstreams.chats import HELLO

SUM = {"model": "auto", "messages": [{"role": "user", "content": "What is 2 + 3?"}]}


class SlowExpert:
    """A stand-in that takes its time and remembers what it was asked."""

    name = "slow"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[dict[str, Any]] = []
        self.running = self.most = 0
        self.was_closed = False

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to free."""

    async def complete(self, request: Request) -> Completion:
        self.asked.append(dict(request))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        return completion("done", model="slow", usage=usage_of(1, 2))

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.asked.append(dict(request))
        try:
            for chunk in chunks_of(completion("done", model="slow"), include_usage=True):
                yield chunk
                await asyncio.sleep(self.seconds)
        finally:
            self.was_closed = True


def local(expert: SlowExpert, **card: Any) -> LocalUpstream:
    model = ModelCard(name="slow", endpoint="local:x", **card)
    return LocalUpstream(expert, model, timeouts=SHORT, settings=UpstreamSettings())


def test_a_local_expert_answers_and_streams() -> None:
    async def check() -> None:
        upstream = build_upstream(
            ModelCard(name="calculator", endpoint="local:calculator"), timeouts=SHORT
        )
        assert upstream.speaks == {"chat"}
        await upstream.start()
        order = Order(dialect="chat", body=SUM)
        answer = await upstream.complete(order)
        assert "5" in answer["choices"][0]["message"]["content"]
        assert order.phases.upstream > 0
        chunks = [chunk async for batch in upstream.stream(order) for chunk in batch]
        assert chunks[-1]["usage"] is not None
        await upstream.close()

    asyncio.run(check())


def test_an_unknown_local_expert_is_named() -> None:
    with pytest.raises(UsageError, match="calculator"):
        build_upstream(ModelCard(name="m", endpoint="local:calculater"), timeouts=SHORT)


def test_a_stream_is_asked_for_token_counts_and_a_whole_answer_is_not() -> None:
    async def check() -> None:
        expert = SlowExpert(0)
        upstream = local(expert)
        body = {**HELLO, "stream": True, "stream_options": {"x": 1}}
        await upstream.complete(Order(dialect="chat", body=body))
        assert expert.asked[0] == HELLO
        async for _ in upstream.stream(Order(dialect="chat", body=body)):
            pass
        assert expert.asked[1]["stream_options"] == {"x": 1, "include_usage": True}

    asyncio.run(check())


def test_no_more_run_at_a_time_than_the_card_says() -> None:
    async def check() -> None:
        expert = SlowExpert(0.01)
        upstream = local(expert, max_parallel=2)
        orders = [Order(dialect="chat", body=HELLO) for _ in range(8)]
        await asyncio.gather(*(upstream.complete(order) for order in orders))
        assert expert.most == 2
        assert orders[-1].phases.queue > 0

    asyncio.run(check())


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_expert_that_takes_too_long_is_stopped(is_stream: bool) -> None:
    async def check() -> None:
        expert = SlowExpert(30)
        upstream = local(expert)
        order = Order(dialect="chat", body=HELLO, deadline=time.monotonic() + 0.05)
        with pytest.raises(ExpertError) as late:
            if is_stream:
                async for _ in upstream.stream(order):
                    pass
            else:
                await upstream.complete(order)
        assert (late.value.status, late.value.code) == (504, "upstream_timeout")
        assert expert.running == 0
        assert expert.was_closed == is_stream

    asyncio.run(check())


def test_leaving_a_stream_stops_the_expert_at_once() -> None:
    async def check() -> None:
        expert = SlowExpert(0)
        stream = local(expert).stream(Order(dialect="chat", body=HELLO))
        await anext(stream)
        await stream.aclose()
        assert expert.was_closed

    asyncio.run(check())
