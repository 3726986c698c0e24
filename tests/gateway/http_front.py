"""A plain ASGI application on a real socket behind either HTTP implementation, and raw clients."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from crossroads.gateway.serving import FrontSettings, http_protocol

LIMIT = 100_000  # bytes of a body
EVENTS = 5
ENDLESS = 200_000_000  # bytes


class App:
    """Echoes; ``/stream`` sends events, ``/endless`` until the client leaves, ``/boom`` fails.

    Attributes
    ----------
    num_sent : events of endless streams sent
    is_gone : set when a client was seen to leave
    is_calm : set when the endless stream ended
    """

    def __init__(self) -> None:
        self.num_sent = 0
        self.num_requests = 0
        self.is_gone = threading.Event()
        self.is_calm = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_requests += 1
        path = scope["path"]
        if path == "/stream":
            await self._stream(receive, send)
        elif path == "/endless":
            await self._endless(send)
        elif path == "/boom":
            raise RuntimeError("the application is wrong")
        elif path == "/cut":
            await start(send, [])
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            raise RuntimeError("in the middle")
        elif path == "/inject":
            await start(send, [(b"x-bad", b"a\r\nx-evil: b"), (b"content-length", b"0")])
        elif path == "/wait":
            await receive()
            while (await receive())["type"] != "http.disconnect":
                pass
            self.is_gone.set()
        else:
            await self._echo(scope, receive, send)

    async def _echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.is_gone.set()
                return
            body += message["body"]
            if len(body) > LIMIT:
                await start(send, [(b"content-length", b"8")], status=413)
                await send({"type": "http.response.body", "body": b"too long"})
                return
            if not message["more_body"]:
                break
        text = b"%b %b %b" % (scope["method"].encode(), scope["path"].encode(), body)
        await start(send, [(b"content-length", str(len(text)).encode())])
        await send({"type": "http.response.body", "body": text})

    async def _stream(self, receive: Any, send: Any) -> None:
        await receive()
        await start(send, [(b"content-type", b"text/event-stream")])
        for number in range(EVENTS):
            event = b"data: %d\n\n" % number
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(0.02)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _endless(self, send: Any) -> None:
        await start(send, [])
        try:
            body = b"x" * 10_000
            while self.num_sent < ENDLESS // len(body):
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self.num_sent += 1
                await asyncio.sleep(0)
        finally:
            self.is_calm.set()


async def start(send: Any, headers: list[tuple[bytes, bytes]], *, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


@contextmanager
def front(kind: Any, app: Any, *, lifespan: Any = "off", **limits: Any) -> Iterator[int]:
    """Serve ``app`` in a thread; yield the port."""
    settings = FrontSettings.model_validate(limits)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=http_protocol(kind, settings),
        ws="none",
        lifespan=lifespan,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=3600,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def talk(port: int, *parts: bytes, pause: float = 0.0, timeout: float = 5.0) -> bytes:
    """Send bytes; return everything that comes until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except OSError:
            pass  # closed by the server while we were sending: what it said counts
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except OSError:
        pass
    return received


def is_served(port: int) -> bool:
    """Whether the next client gets its answer."""
    answer = talk(port, b"GET /next HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
    return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"GET /next ")


def statuses(answer: bytes) -> list[int]:
    """Return the statuses of responses one after the other."""
    # What was sent comes back in bodies, broken status lines too.
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
