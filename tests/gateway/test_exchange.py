from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from crossroads.gateway import exchange as module
from crossroads.gateway.exchange import ClientGoneError, Exchange, Lookout, Message
from crossroads.gateway.serving.line import KEY, Line

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


def test_a_call_keeps_its_task_uncancelled_when_its_client_left() -> None:
    async def call() -> tuple[bool, int]:
        is_cut = await last(Lookout(), leaves=True)
        task = asyncio.current_task()
        assert task is not None
        return is_cut, task.cancelling()

    assert asyncio.run(call()) == (True, 0)


def test_a_disconnect_after_the_last_byte_is_no_client_that_left() -> None:
    async def call() -> bool:
        gone = asyncio.Event()
        exchange = an_exchange(Lookout(), gone)
        with exchange.watch():
            await exchange.send_json(b"{}", headers=[])
            gone.set()
            await asyncio.sleep(0.02)  # long enough to be watched
        return exchange.is_gone

    assert asyncio.run(call()) is False


def test_every_thread_watches_the_calls_of_its_own_event_loop() -> None:
    lookout = Lookout()
    is_in, is_left = threading.Event(), threading.Event()

    async def stay() -> bool:
        exchange = an_exchange(lookout, asyncio.Event())
        with exchange.watch():
            is_in.set()
            is_left.wait(5)  # its task is the current one, of a loop that is busy
            await asyncio.sleep(0.02)
        return exchange.is_gone

    with ThreadPoolExecutor(1) as pool:
        stays = pool.submit(lambda: asyncio.run(stay()))
        assert is_in.wait(5)
        assert asyncio.run(last(lookout, leaves=True))
        is_left.set()
        assert stays.result(5) is False


# --- with a server that tells at once -------------------------------------------------------------


def on_a_line(line: Line) -> Exchange:
    async def receive() -> dict[str, Any]:
        raise AssertionError("there is no need to watch")

    async def send(_: Any) -> None:
        return None

    return Exchange({**SCOPE, KEY: line}, receive, send, Lookout())


def test_a_line_that_is_cut_ends_the_call() -> None:
    async def call() -> tuple[bool, int]:
        line = Line()
        exchange = on_a_line(line)
        asyncio.get_running_loop().call_soon(line.cut)
        with pytest.raises(ClientGoneError), exchange.watch():
            await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        return exchange.is_gone, task.cancelling()

    assert asyncio.run(call()) == (True, 0)


def test_a_call_does_not_begin_on_a_line_that_is_cut() -> None:
    async def call() -> None:
        line = Line()
        line.cut()
        with pytest.raises(ClientGoneError), on_a_line(line).watch():
            raise AssertionError("nobody is there")

    asyncio.run(call())


def test_a_client_that_left_is_told_of_even_where_the_cancellation_was_held_back() -> None:
    async def call() -> None:
        line = Line()
        asyncio.get_running_loop().call_soon(line.cut)
        held_back = suppress(asyncio.CancelledError)
        with pytest.raises(ClientGoneError), on_a_line(line).watch(), held_back:
            await asyncio.Event().wait()

    asyncio.run(call())


def test_a_line_that_is_cut_between_calls_cancels_nobody() -> None:
    async def call() -> bool:
        line = Line()
        exchange = on_a_line(line)
        with exchange.watch():
            await asyncio.sleep(0)
        line.cut()
        await asyncio.sleep(0)
        return exchange.is_gone

    assert asyncio.run(call()) is False


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
