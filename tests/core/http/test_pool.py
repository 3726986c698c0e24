"""Which connection a request gets, and what becomes of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from crossroads.core.http import connection as connections
from crossroads.core.http import pool as pools
from crossroads.core.http.connection import Connection, HttpFailure
from crossroads.core.http.dial import Target
from crossroads.core.http.pool import ConnectionPool, Request, Seconds
from crossroads.core.http.timeouts import Timeouts
from tests.core.http.conftest import Run
from tests.core.http.servers import (
    Received,
    eventually,
    pool_to,
    raw_server,
    read_all,
    request_to,
    response,
    stream_response,
)


def test_one_after_the_other_share_a_connection(run: Run) -> None:
    async def ask() -> None:
        async with raw_server(response(b"ok")) as server, pool_to(server) as pool:
            for _ in range(20):
                await pool.fetch(request_to(server))
            assert (server.num_connections, pool.num_opened) == (1, 1)

    run(ask())


def test_at_once_they_have_one_each_and_only_so_many_are_kept(run: Run) -> None:
    async def slow(_: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.03)
        writer.write(response(b"ok"))

    async def ask() -> None:
        async with raw_server(slow) as server, pool_to(server, max_idle=3) as pool:
            await asyncio.gather(*(pool.fetch(request_to(server)) for _ in range(8)))
            assert server.num_connections == 8
            assert (pool.num_idle, pool.num_busy) == (3, 0)

    run(ask())


def test_every_answer_reaches_who_asked(run: Run) -> None:
    async def echo(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(int(request.body) % 7 / 1000)
        writer.write(response(request.body))

    async def ask(number: int, pool: ConnectionPool, request: Request) -> bool:
        _, body = await pool.fetch(request)
        return int(body) == number

    async def ask_all() -> None:
        async with raw_server(echo) as server, pool_to(server, max_idle=8) as pool:
            for _ in range(4):
                asked = [
                    ask(
                        number,
                        pool,
                        request_to(server, body=str(number).encode(), timeouts=Timeouts()),
                    )
                    for number in range(64)
                ]
                assert all(await asyncio.gather(*asked))

    run(ask_all())


def test_a_connection_the_server_closed_meanwhile_is_not_used(run: Run) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"ok"))
        await writer.drain()
        writer.close()  # politely, but without saying so in the head

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            for _ in range(3):
                await pool.fetch(request_to(server))
                await eventually(lambda: pool.num_idle == 0)
            assert server.num_connections == 3

    run(ask())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request_on_a_dead_connection_is_sent_again_on_a_fresh_one(
    run: Run, is_stream: bool
) -> None:
    """The server closes each connection when a second request comes on it."""
    seen: list[asyncio.StreamWriter] = []

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        if writer in seen:
            writer.transport.abort()
        else:
            seen.append(writer)
            writer.write(response(b"ok"))

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            await pool.fetch(request_to(server))
            if is_stream:
                connection = await pool.open(request_to(server))
                assert await read_all(connection) == b"ok"
                pool.settle(connection)
            else:
                _, body = await pool.fetch(request_to(server))
                assert body == b"ok"
            assert (len(server.requests), server.num_connections) == (3, 2)

    run(ask())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request_that_does_something_twice_is_not_sent_again(run: Run, is_stream: bool) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        if request.body == b"second":
            writer.transport.abort()
        else:
            writer.write(response(b"ok"))

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            await pool.fetch(request_to(server))
            request = request_to(server, body=b"second", can_resend=False)
            with pytest.raises(HttpFailure, match="connection lost"):
                await (pool.open(request) if is_stream else pool.fetch(request))
            assert len(server.requests) == 2

    run(ask())


def test_once_a_byte_of_an_answer_came_nothing_is_sent_again(run: Run) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        if request.body == b"second":
            writer.write(b"H")
            await writer.drain()
            writer.close()
        else:
            writer.write(response(b"ok"))

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            await pool.fetch(request_to(server))
            with pytest.raises(HttpFailure, match="connection lost"):
                await pool.fetch(request_to(server, body=b"second"))
            assert len(server.requests) == 2

    run(ask())


def test_a_server_that_hangs_up_on_everybody_is_tried_once_on_a_fresh_connection(run: Run) -> None:
    async def hang_up(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def ask() -> None:
        async with raw_server(hang_up) as server, pool_to(server) as pool:
            with pytest.raises(HttpFailure) as failed:
                await pool.fetch(request_to(server))
            assert failed.value.kind == "lost"
            assert len(server.requests) == 1

    run(ask())


@pytest.mark.parametrize("is_stream", [False, True])
def test_cancelling_closes_the_connection_at_once(run: Run, is_stream: bool) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        if is_stream:
            writer.write(stream_response(b"data: 1\n\n", end=False))

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            if is_stream:
                connection = await pool.open(request_to(server))
                task = asyncio.ensure_future(read_all(connection))
            else:
                task = asyncio.ensure_future(pool.fetch(request_to(server)))  # type: ignore[arg-type]
            await eventually(lambda: len(server.requests) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if is_stream:
                pool.settle(connection)
            await asyncio.wait_for(server.gone.wait(), 0.2)
            assert (pool.num_idle, pool.num_busy) == (0, 0)

    run(ask())


def test_cancelling_before_the_head_of_a_stream_closes_the_connection_at_once(run: Run) -> None:
    async def silent(_: Received, writer: asyncio.StreamWriter) -> None: ...

    async def ask() -> None:
        async with raw_server(silent) as server, pool_to(server) as pool:
            task = asyncio.ensure_future(pool.open(request_to(server)))
            await eventually(lambda: len(server.requests) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pool.num_busy == 0
            await asyncio.wait_for(server.gone.wait(), 0.2)

    run(ask())


def test_unused_connections_are_closed_after_their_time(run: Run) -> None:
    async def ask() -> None:
        async with raw_server(response(b"ok")) as server, pool_to(server, idle_s=0.02) as pool:
            await pool.fetch(request_to(server))
            assert pool.num_idle == 1
            await eventually(lambda: pool.num_idle == 0)
            await asyncio.wait_for(server.gone.wait(), 1)

    run(ask())


def test_a_pool_closes_when_its_last_user_does(run: Run) -> None:
    async def ask() -> None:
        async with raw_server(response(b"ok")) as server, pool_to(server) as pool:
            await pool.start()
            await pool.fetch(request_to(server))
            await pool.close()
            assert pool.num_idle == 1
            await pool.close()
            assert pool.num_idle == 0
            await asyncio.wait_for(server.gone.wait(), 1)
            await pool.start()
            await pool.fetch(request_to(server))
            assert pool.num_idle == 1

    run(ask())


def test_a_stream_whose_end_is_late_gives_its_connection_back(run: Run) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_response(b"last", end=False))
        await asyncio.sleep(0.03)
        writer.write(b"0\r\n\r\n")

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            connection = await pool.open(request_to(server))
            assert await connection.portion() == b"last"
            pool.linger(connection)
            assert pool.num_idle == 0
            await eventually(lambda: pool.num_idle == 1)

    run(ask())


def test_a_stream_that_never_ends_does_not_keep_its_connection(run: Run) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_response(b"last", end=False))

    async def ask() -> None:
        async with raw_server(answer) as server, pool_to(server) as pool:
            connection = await pool.open(request_to(server))
            await connection.portion()
            pool.linger(connection)
            await asyncio.wait_for(server.gone.wait(), 1)
            assert (pool.num_idle, pool.num_busy) == (0, 0)

    run(ask())


def test_no_server_is_no_connection(run: Run) -> None:
    async def ask() -> None:
        async with raw_server(b"") as server:
            pool = ConnectionPool(Target(host="127.0.0.1", port=9))
            await pool.start()
            with pytest.raises(HttpFailure, match="no connection") as failed:
                await pool.fetch(request_to(server))
            assert failed.value.kind == "connect"
            await pool.close()

    run(ask())


def test_time_is_counted_where_it_goes(run: Run) -> None:
    async def slow(_: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(response(b"ok"))

    async def ask() -> None:
        async with raw_server(slow) as server, pool_to(server) as pool:
            first, second = request_to(server), request_to(server)
            await pool.fetch(first)
            await pool.fetch(second)
            assert first.phases.connect > 0
            assert second.phases.connect == 0
            assert second.phases.upstream > 0.04

    run(ask())


class Clock:
    """Stands for the module ``time`` and goes on only where it is told to."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowWrite(asyncio.Transport):
    """A write that takes ``write_s``, an answer in the next turn of a loop busy for ``busy_s``."""

    def __init__(self, clock: Clock, connection: Connection, write_s: float, busy_s: float) -> None:
        super().__init__()
        self._clock, self._connection = clock, connection
        self._write_s, self._busy_s = write_s, busy_s

    def _pass(self, seconds: float) -> None:
        self._clock.now += seconds

    def write(self, data: Any) -> None:
        self._pass(self._write_s)
        loop = asyncio.get_running_loop()
        loop.call_soon(self._connection.data_received, response(b"ok"))
        loop.call_soon(self._pass, self._busy_s)  # runs before the task that the answer wakes

    def abort(self) -> None: ...

    def is_closing(self) -> bool:
        return False


def upstream_s(
    monkeypatch: pytest.MonkeyPatch, *, write_s: float, busy_s: float, is_stream: bool = False
) -> float:
    """Return the seconds that are counted as the server's, by a clock of our own."""
    clock = Clock()

    async def dial(_: Any, __: Any, ___: Any, connection: Connection) -> None:
        connection.connection_made(SlowWrite(clock, connection, write_s, busy_s))

    async def ask() -> float:
        pool = ConnectionPool(Target(host="127.0.0.1", port=9))
        await pool.start()
        request = Request(
            b"", b"{}", Timeouts(), time.monotonic() + 60, Seconds(), max_bytes=1 << 20
        )
        if is_stream:
            pool.settle(await pool.open(request))
        else:
            await pool.fetch(request)
        await pool.close()
        return request.phases.upstream

    for module in (connections, pools):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(pools, "dial", dial)
    return asyncio.run(ask())


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_that_is_there_when_the_write_returns_took_the_server_its_time(
    monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    """The system may run the server within our write; it is not the gateway that worked then."""
    assert upstream_s(monkeypatch, write_s=0.025, busy_s=0.0, is_stream=is_stream) == 0.025


def test_an_answer_that_waits_for_a_busy_loop_does_not_take_the_server_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert upstream_s(monkeypatch, write_s=0.025, busy_s=4.0) == 0.025


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_server_that_closes_every_connection_at_once_is_unavailable(
    run: Run, is_stream: bool
) -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def ask() -> None:
        async with raw_server(b"") as server:
            closing = await asyncio.start_server(close, "127.0.0.1", 0)
            target = Target(host="127.0.0.1", port=closing.sockets[0].getsockname()[1])
            pool = ConnectionPool(target)
            await pool.start()
            for _ in range(20):
                with pytest.raises(HttpFailure) as failed:
                    request = request_to(server)
                    await (pool.open(request) if is_stream else pool.fetch(request))
                assert failed.value.kind in {"lost", "connect"}
            assert (pool.num_idle, pool.num_busy) == (0, 0)
            await pool.close()
            closing.close()
            await asyncio.sleep(0.01)

    run(ask())
