from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crossroads.gateway import exchange as module
from crossroads.gateway.exchange import ClientGoneError, Exchange, Lookout, Message

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}


def an_exchange(lookout: Lookout, gone: asyncio.Event) -> Exchange:
    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        return None

    return Exchange(dict(SCOPE), receive, send, lookout)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCH_AFTER_S", 0.001)


async def last(lookout: Lookout, *, leaves: bool) -> bool:
    """Run a call that lasts; return whether it was cut short."""
    gone = asyncio.Event()
    exchange = an_exchange(lookout, gone)
    if leaves:
        gone.set()
    try:
        with exchange.watch():
            await asyncio.sleep(5 if leaves else 0.02)
    except ClientGoneError:
        return exchange.is_gone
    return False


def test_a_call_that_lasts_ends_when_its_client_leaves_and_not_before() -> None:
    async def both() -> list[bool]:
        lookout = Lookout()
        calls = [last(lookout, leaves=leaves) for leaves in (True, False, True)]
        return await asyncio.gather(*calls)

    assert asyncio.run(both()) == [True, False, True]


def test_calls_on_another_event_loop_are_watched_too() -> None:
    lookout = Lookout()
    assert asyncio.run(last(lookout, leaves=True))
    assert asyncio.run(last(lookout, leaves=True))


def test_a_call_that_is_over_is_forgotten() -> None:
    async def calls() -> int:
        lookout, gone = Lookout(), asyncio.Event()
        for _ in range(100):
            with an_exchange(lookout, gone).watch():
                pass
        num_left = len(lookout.young)
        await asyncio.sleep(0.02)
        return num_left + len(asyncio.all_tasks()) - 1

    assert asyncio.run(calls()) == 0


def test_a_body_in_parts_is_joined() -> None:
    parts = iter([(b"a", True), (b"", True), (b"bc", False)])

    async def receive() -> dict[str, Any]:
        body, more = next(parts)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(_: Any) -> None:
        return None

    exchange = Exchange(dict(SCOPE), receive, send, Lookout())
    assert asyncio.run(exchange.read_body(10)) == b"abc"


def test_the_headers_sent_are_those_of_the_response_without_the_requests_id() -> None:
    heads: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        heads.extend(message.get("headers", ()))

    exchange = Exchange(dict(SCOPE), receive, send, Lookout())
    exchange.more_headers = [(b"x-more", b"1")]
    assert exchange.sent_headers == []
    asyncio.run(exchange.send_json(b"{}", headers=[(b"x-own", b"2")]))
    assert heads[0] == (b"x-request-id", exchange.request_id)
    assert exchange.sent_headers == heads[1:]
    assert dict(heads)[b"content-length"] == b"2"
