"""HTTP/1.1 as servers really speak it, and as they should not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.http.connection import (
    MAX_BUFFERED_BYTES,
    MAX_HEAD_BYTES,
    Connection,
    HttpFailure,
)
from tests.core.http.conftest import Run
from tests.core.http.servers import (
    SHORT,
    Received,
    eventually,
    pool_to,
    raw_server,
    read_all,
    request_to,
    response,
    stream_response,
)

WHOLE = [
    (response(b"hello"), 200, b"hello"),
    (response(b""), 200, b""),
    (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        200,
        b"hello",
    ),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n",
        200,
        b"hello",
    ),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    (b"HTTP/1.1 304 Not Modified\r\n\r\n", 304, b""),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"hello"), 200, b"hello"),
    (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 3 + response(b"hello"), 200, b"hello"),
    (response(b"no", status=404), 404, b"no"),
]


class Away:
    """Stands in for a pool that nothing comes back to."""

    def settle(self, connection: Connection) -> None:
        """Nothing is kept."""

    def forget(self, connection: Connection) -> None:
        """Nothing is remembered."""


class Wire(asyncio.Transport):
    """Stands in for a socket: what is written goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False
        self.is_paused = False

    def write(self, data: Any) -> None:
        """Swallow it."""

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


def connected() -> tuple[Connection, Wire]:
    """Return a connection, on a wire of its own, that asked for something."""
    connection, wire = Connection(asyncio.get_running_loop(), Away()), Wire()
    connection.connection_made(wire)
    connection.ask(b"", b"", timeouts=SHORT, began=0.0, deadline=1e9, limit=1 << 20)
    return connection, wire


@given(st.sampled_from(WHOLE), st.data())
def test_any_split_of_the_bytes_gives_the_same_answer(
    case: tuple[bytes, int, bytes], data: st.DataObject
) -> None:
    raw, status, body = case
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=12).map(sorted))

    async def feed() -> None:
        connection, _ = connected()
        for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            connection.data_received(raw[start:stop])
        assert connection.is_complete
        assert await connection.whole() == body
        assert connection.status == status
        assert connection.is_usable

    asyncio.run(feed())


def test_one_byte_at_a_time_is_enough() -> None:
    async def feed() -> None:
        for raw, status, body in WHOLE:
            connection, _ = connected()
            for number in range(len(raw)):
                assert not connection.is_complete
                connection.data_received(raw[number : number + 1])
            assert (connection.status, await connection.whole()) == (status, body)

    asyncio.run(feed())


@pytest.mark.parametrize(("raw", "status", "body"), WHOLE)
def test_an_answer_comes_whole_and_its_connection_is_used_again(
    run: Run, raw: bytes, status: int, body: bytes
) -> None:
    async def ask_thrice() -> None:
        async with raw_server(raw) as server, pool_to(server) as pool:
            for _ in range(3):
                connection, got = await pool.fetch(request_to(server))
                assert (connection.status, got) == (status, body)
            assert (server.num_connections, pool.num_opened, pool.num_idle) == (1, 1, 1)

    run(ask_thrice())


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        response(b"hello", connection="close"),
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello",
    ],
)
def test_a_connection_the_server_will_close_is_not_used_again(run: Run, raw: bytes) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async def ask_twice() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            for _ in range(2):
                _, body = await pool.fetch(request_to(server))
                assert body == b"hello"
            assert server.num_connections == 2
            assert pool.num_idle == 0

    run(ask_twice())


HOSTILE = [
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"HTTP/9.9 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * (MAX_HEAD_BYTES // 5),
    b"HTTP/1.1 200 OK\r\nx: " + b"y" * (MAX_HEAD_BYTES + 9),
    b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_HEAD_BYTES // 20),
]


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_answer_is_refused_and_its_connection_closed(run: Run, raw: bytes) -> None:
    async def ask() -> None:
        async with raw_server(raw) as server, pool_to(server) as pool:
            with pytest.raises(HttpFailure) as failed:
                await pool.fetch(request_to(server))
            assert failed.value.kind == "invalid"
            await asyncio.wait_for(server.gone.wait(), 2)
            assert (pool.num_idle, pool.num_busy) == (0, 0)

    run(ask())


def test_an_answer_past_its_limit_is_refused(run: Run) -> None:
    async def ask() -> None:
        async with raw_server(response(b"x" * 5000)) as server, pool_to(server) as pool:
            _, body = await pool.fetch(request_to(server, max_bytes=5000))
            assert len(body) == 5000
            with pytest.raises(HttpFailure, match="more than 4999 bytes"):
                await pool.fetch(request_to(server, max_bytes=4999))

    run(ask())


def test_an_answer_nobody_asked_for_never_answers_the_next_request(run: Run) -> None:
    """Two answers to one request, in one write or with the second while the connection rests."""

    async def both_at_once(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"mine") + response(b"somebody else's"))

    async def second_later(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"mine"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(response(b"somebody else's"))

    async def garbage_after(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"mine") + b"\x00\x01\x02")

    async def ask_often() -> None:
        for answer in (both_at_once, second_later, garbage_after):
            async with raw_server(answer) as server, pool_to(server) as pool:
                for _ in range(3):
                    _, body = await pool.fetch(request_to(server))
                    assert body == b"mine"
                    await eventually(lambda: pool.num_idle == 0)
                assert server.num_connections == 3

    run(ask_often())


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "lost"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "lost"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", "cut"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "cut"),
    ],
)
def test_a_connection_that_ends_early_is_no_end_of_the_answer(
    run: Run, raw: bytes, kind: str
) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            with pytest.raises(HttpFailure) as failed:
                await pool.fetch(request_to(server))
            assert failed.value.kind == kind

    run(ask())


def test_what_came_before_a_cut_is_still_read(run: Run) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_response(b"abc", b"def", end=False))
        writer.close()

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            connection = await pool.open(request_to(server))
            await asyncio.sleep(0.05)  # the cut is known before anything was read
            assert await connection.portion() == b"abcdef"
            with pytest.raises(HttpFailure, match="broke off"):
                await connection.portion()
            pool.settle(connection)

    run(ask())


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", r"no answer within 0\.3 s"),
        (b"HTTP/1.1 200 OK\r\n", r"no answer within 0\.3 s"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", r"no further bytes within 0\.3 s"),
    ],
)
def test_silence_ends_in_time(run: Run, raw: bytes, match: str) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await asyncio.sleep(30)

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            with pytest.raises(HttpFailure, match=match) as failed:
                await pool.fetch(request_to(server))
            assert failed.value.kind == "timeout"

    run(ask())


def test_a_trickle_does_not_outlive_the_deadline(run: Run) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            request = request_to(server)
            request.deadline -= SHORT.total - 0.4
            with pytest.raises(HttpFailure, match=r"no whole answer within 0\.4 s"):
                await pool.fetch(request)

    run(ask())


def test_a_slow_reader_holds_the_server_back_and_loses_nothing(run: Run) -> None:
    block, number = b"x" * 65_536, 320  # 20 MiB
    written = 0

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(block) * number))
        for _number in range(number):
            writer.write(block)
            await writer.drain()
            written += len(block)

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            connection = await pool.open(request_to(server))
            await asyncio.sleep(0.5)  # longer than the idle timeout, which must not fire
            before = written
            assert before < 16 << 20  # the kernel's buffers and ours, not the whole body
            first = await connection.portion()
            assert len(first) < 4 * MAX_BUFFERED_BYTES
            rest = await read_all(connection)
            assert len(first) + len(rest) == len(block) * number
            pool.settle(connection)
            assert pool.num_idle == 1

    run(ask())


def test_memory_of_a_stream_without_a_reader_is_bounded() -> None:
    async def feed() -> None:
        connection, wire = connected()
        connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        head = asyncio.ensure_future(connection.head())
        await head
        reading = asyncio.ensure_future(connection.portion())
        await asyncio.sleep(0)
        connection.data_received(b"5\r\nhello\r\n")
        assert await reading == b"hello"
        sent = 0
        while not wire.is_paused:
            connection.data_received(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            sent += 65_536
            assert sent <= 2 * MAX_BUFFERED_BYTES
        assert len(await connection.portion()) == sent
        assert not wire.is_paused

    asyncio.run(feed())


@given(st.binary(max_size=300))
def test_no_bytes_whatever_break_the_reader(raw: bytes) -> None:
    async def feed() -> None:
        connection, wire = connected()
        connection.data_received(b"HTTP/1.1 200 OK\r\n")
        connection.data_received(raw)
        connection.connection_lost(None)
        try:
            await connection.whole()
        except HttpFailure as failure:
            assert failure.kind in {"invalid", "cut", "lost"}
            assert wire.is_aborted or failure.kind != "invalid"

    asyncio.run(feed())
