"""Upstreams with a card each, and what they are asked in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from crossroads.gateway.call import Dialect, Event
from crossroads.gateway.contracts import Order, Upstream
from crossroads.gateway.upstreams import UpstreamSettings, build_upstream
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard
from tests.core.http.servers import SHORT, Answer, RawServer, raw_server
from tests.gateway.upstreams.chats import HELLO, chat_answer, chat_chunk

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


ANSWERS: dict[Dialect, dict[str, Any]] = {
    "chat": orjson.loads(chat_answer()),
    "completions": {"id": "c", "choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]},
    "embeddings": {"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "model": "x"},
    "responses": {"id": "r", "object": "response", "output": [], "error": None, "new": 1},
    "messages": {"id": "m", "type": "message", "content": [{"type": "text", "text": "hi"}]},
}
