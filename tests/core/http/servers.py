"""Servers on loopback that write exactly the bytes a test wants."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from crossroads.core.http.connection import Connection
from crossroads.core.http.dial import Target
from crossroads.core.http.pool import ConnectionPool, Request, Seconds
from crossroads.core.http.timeouts import Timeouts

SHORT = Timeouts(connect=0.5, first_byte=0.3, idle=0.3, total=2.0)


@dataclass
class Received:
    """One request as it came in."""

    line: str
    headers: dict[str, str]
    body: bytes
    num_lines: int  # of headers, repeated ones counted

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class RawServer:
    """What the server saw.

    Attributes
    ----------
    requests : in order
    num_connections : opened so far
    gone : set when a client closed a connection
    """

    port: int = 0
    requests: list[Received] = field(default_factory=list)
    num_connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    @property
    def target(self) -> Target:
        return Target(host="127.0.0.1", port=self.port)


Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head[:-4].split("\r\n")
    pairs = [text.split(": ", 1) for text in rest]
    headers = {name.lower(): value for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(line, headers, body, len(rest))


@asynccontextmanager
async def raw_server(
    answer: Answer | bytes, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawServer]:
    """Run a server that answers every request by ``answer``, or with those bytes."""
    served = RawServer(scheme="http" if tls is None else "https")
    tasks: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        served.num_connections += 1
        try:
            while True:
                request = await read_request(reader)
                served.requests.append(request)
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    await answer(request, writer)
                if writer.is_closing():
                    return
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            served.gone.set()
        finally:
            tasks.discard(task)
            with suppress(OSError):
                writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        await asyncio.sleep(0.005)  # connections of clients that left at once are accepted first
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)


def response(
    body: bytes, *, status: int = 200, kind: str = "application/json", **headers: str
) -> bytes:
    """Return a whole response with a content-length."""
    lines = [f"HTTP/1.1 {status} Words", f"content-type: {kind}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def stream_response(*datas: bytes, end: bool = True) -> bytes:
    """Return a chunked event stream, one chunk for each of ``datas``."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(data), data) for data in datas)
    return head + chunks + (b"0\r\n\r\n" if end else b"")


def request_to(
    server: RawServer,
    *,
    timeouts: Timeouts = SHORT,
    can_resend: bool = True,
    max_bytes: int = 1 << 20,
    body: bytes = b"{}",
) -> Request:
    """Return a request that asks for nothing in particular."""
    head = f"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    deadline = time.monotonic() + timeouts.total
    return Request(head, body, timeouts, deadline, Seconds(), max_bytes, can_resend)


@asynccontextmanager
async def pool_to(server: RawServer, **options: Any) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(server.target, **options)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()
        await asyncio.sleep(0)


async def read_all(connection: Connection) -> bytes:
    """Return the body of an answer, read portion by portion."""
    parts = []
    while portion := await connection.portion():
        parts.append(portion)
    return b"".join(parts)


async def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; a test that hangs here has failed."""
    async with asyncio.timeout(2):
        while not is_so():
            await asyncio.sleep(0.005)
