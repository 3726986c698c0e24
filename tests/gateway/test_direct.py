"""Requests and responses without messages are those of messages, byte by byte."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.errors import ApiError
from crossroads.gateway.exchange import Exchange, Lookout
from crossroads.gateway.serving import direct
from crossroads.gateway.serving.cycle import Cycle

names = st.sampled_from([b"content-type", b"x-reason", b"date", b"connection", b"retry-after"])
values = st.sampled_from([b"text/plain", b"why not", b"close", b"keep-alive", b"1", b""])
SCOPE = {"method": "POST", "path": "/", "headers": [], "http_version": "1.1"}


@dataclass
class Wire:
    """A connection that keeps what is written to it."""

    is_choked: bool = False
    written: bytes = b""
    default_headers: list[tuple[bytes, bytes]] = field(
        default_factory=lambda: [(b"date", b"today")]
    )
    over: list[Cycle] = field(default_factory=list)

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        self.is_choked = False

    def body_taken(self) -> None:
        pass

    def response_over(self, cycle: Cycle) -> None:
        self.over.append(cycle)


def a_cycle(wire: Wire, body: bytes | None = b"", **options: Any) -> Cycle:
    """A cycle whose request has arrived; None for a body that has not."""
    given = {"keep_alive": True, "wants_100": False, **options}
    method = given.pop("method", "POST")
    cycle = Cycle(wire, {**SCOPE, "method": method}, **given)
    if body is not None:
        cycle.feed(body)
        cycle.end()
    return cycle


def an_exchange(cycle: Cycle, *, is_direct: bool) -> Exchange:
    more = {direct.KEY: cycle} if is_direct else {}
    scope = {**cycle.scope, **more, "headers": [(b"x-request-id", b"a")]}
    return Exchange(scope, cycle.receive, cycle.send, Lookout())


@given(
    status=st.sampled_from([200, 404, 429, 599]),
    headers=st.lists(st.tuples(names, values), max_size=4),
    body=st.binary(max_size=40),
    request=st.fixed_dictionaries(
        {"keep_alive": st.booleans(), "method": st.sampled_from(["POST", "GET", "HEAD"])}
    ),
    is_whole=st.booleans(),
    is_choked=st.booleans(),
)
def test_a_response_is_the_same_bytes_with_messages_and_without(
    *,
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    request: dict[str, Any],
    is_whole: bool,
    is_choked: bool,
) -> None:
    def sent(is_direct: bool) -> tuple[bytes, bool, bool, int, bool]:
        wire = Wire(is_choked=is_choked)
        cycle = a_cycle(wire, b"" if is_whole else None, **request)
        exchange = an_exchange(cycle, is_direct=is_direct)
        asyncio.run(exchange.send_whole(status, headers, body))
        assert wire.over == [cycle]
        return wire.written, cycle.keep_alive, cycle.is_over, exchange.status, exchange.is_over

    assert sent(is_direct=True) == sent(is_direct=False)


@pytest.mark.parametrize("value", [b"a\nb: c", b"a\rb", b"a\0b"])
def test_a_header_that_would_end_its_line_is_not_sent(value: bytes) -> None:
    wire = Wire()
    cycle = a_cycle(wire)
    with pytest.raises(RuntimeError, match="line break or a zero byte"):
        cycle.send_whole(200, [(b"x", value), (b"content-length", b"0")], b"")
    assert not wire.written
    assert not cycle.is_sent


def test_nobody_is_written_to_who_left_or_was_answered() -> None:
    wire = Wire()
    left, answered = a_cycle(wire), a_cycle(wire)
    left.disconnect()
    assert not left.send_whole(200, [], b"")
    assert answered.send_whole(200, [(b"content-length", b"0")], b"")
    before = wire.written
    assert not answered.send_whole(200, [(b"content-length", b"0")], b"")
    assert wire.written == before


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_body_is_read_once_and_within_its_limit(is_direct: bool) -> None:
    async def read(limit: int) -> bytes:
        return await an_exchange(a_cycle(Wire(), b"12345"), is_direct=is_direct).read_body(limit)

    assert asyncio.run(read(5)) == b"12345"
    with pytest.raises(ApiError) as caught:
        asyncio.run(read(4))
    assert caught.value.status == 413
    cycle = a_cycle(Wire(), b"12345")
    assert (cycle.take_whole(), cycle.take_whole()) == (b"12345", None)


def test_a_body_that_is_not_whole_yet_is_waited_for() -> None:
    async def read() -> bytes:
        cycle = a_cycle(Wire(), None)
        cycle.feed(b"12")
        reading = asyncio.create_task(an_exchange(cycle, is_direct=True).read_body(10))
        await asyncio.sleep(0)
        cycle.feed(b"345")
        cycle.end()
        return await reading

    assert asyncio.run(read()) == b"12345"


def test_a_copy_is_kept_where_it_is_wanted() -> None:
    kept: list[bytes] = []
    exchange = an_exchange(a_cycle(Wire()), is_direct=True)
    exchange.keep = kept.append
    asyncio.run(exchange.send_json(b"{}", headers=[]))
    assert kept == [b"{}"]
