"""A stream that is silent for long shows that it lives, between its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
from anthropic import Anthropic

from crossroads.gateway.call import Dialect, Event
from crossroads.gateway.contracts import Order
from crossroads.gateway.exchange import Exchange, Lookout
from crossroads.gateway.pulse import Pulse
from crossroads.prompts.experts.base import chunks_of, completion
from tests.gateway.serving import gateway_of, serving

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}
COMMENT = b": keep-alive\n\n"


class Slow:
    """Streams an answer, silent for a while after each event."""

    name = "slow"
    speaks: frozenset[Dialect] = frozenset({"chat"})

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def complete(self, order: Order) -> Any:
        return completion("all is well", model="slow")

    async def stream(self, order: Order) -> AsyncGenerator[list[Event], None]:
        for chunk in chunks_of(completion("all is well", model="slow"), include_usage=True):
            yield [chunk]
            await asyncio.sleep(0.1)


async def beats(num_beats: int, seconds: float | None, dialect: Dialect) -> list[bytes]:
    """Return what is sent by a stream of two events that is silent for so many beats between."""
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    exchange = Exchange(dict(SCOPE), receive, send, Lookout())
    with Pulse(exchange, dialect, seconds):
        await exchange.send_part(b"event")
        while len(sent) < 1 + num_beats:
            await asyncio.sleep(0.002)
        await exchange.send_part(b"event")
    at_the_end = list(sent)
    await asyncio.sleep(0.05)
    assert sent == at_the_end
    return sent


def test_only_long_silences_are_broken() -> None:
    assert asyncio.run(beats(0, 60.0, "chat")) == [b"event", b"event"]
    assert asyncio.run(beats(0, None, "chat")) == [b"event", b"event"]
    assert asyncio.run(beats(2, 0.01, "chat"))[:3] == [b"event", COMMENT, COMMENT]


def test_anthropics_clients_get_their_own_event() -> None:
    ping = asyncio.run(beats(1, 0.01, "messages"))[1]
    assert ping == b'event: ping\ndata: {"type": "ping"}\n\n'


def test_a_client_that_does_not_read_gets_no_more_of_them() -> None:
    async def run() -> int:
        num_begun = 0

        async def send(_: Any) -> None:
            nonlocal num_begun
            num_begun += 1
            await asyncio.Event().wait()

        exchange = Exchange(dict(SCOPE), send, send, Lookout())  # type: ignore[arg-type]
        with Pulse(exchange, "chat", 0.01):
            await asyncio.sleep(0.2)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        return num_begun

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("ping_s", [0.01, None])
def test_the_vendors_clients_read_over_them(ping_s: float | None) -> None:
    with serving(gateway_of({"slow": Slow()}, ping_s=ping_s)) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
            chunks = client.chat.completions.create(
                model="slow", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == "all is well"
        with (
            Anthropic(base_url=url, api_key="x") as anthropic,
            anthropic.messages.stream(
                model="slow", messages=[{"role": "user", "content": "hi"}], max_tokens=9
            ) as stream,
        ):
            assert stream.get_final_text() == "all is well"
