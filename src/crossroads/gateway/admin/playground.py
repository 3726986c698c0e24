"""Asks an ASGI application in this process, as if a client had sent it a chat request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message

from crossroads.gateway.admin.sources import Reply

_LONGEST = 300.0  # seconds of one call


def in_process(app: ASGIApp) -> Callable[[bytes, str], Awaitable[Reply]]:
    """Return what ``AdminSources.playground`` needs: from a body and a key to the reply.

    The call goes the way of all others: limits, budgets, ledger. Raises TimeoutError after 300 s.
    """

    async def ask(body: bytes, key: str) -> Reply:
        headers = [
            (b"host", b"playground"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if key:
            headers.append((b"authorization", f"Bearer {key}".encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
        }
        exchange = _Exchange(body)
        await asyncio.wait_for(app(scope, exchange.receive, exchange.send), _LONGEST)
        return Reply(exchange.status, exchange.headers, bytes(exchange.content))

    return ask


class _Exchange:
    """The client's side of one call."""

    def __init__(self, body: bytes) -> None:
        self.status = 500
        self.headers: dict[str, str] = {}
        self.content = bytearray()
        self._body: bytes | None = body

    async def receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # a client that stays until it has its answer
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                bytes(name).decode("latin-1").lower(): bytes(value).decode("latin-1")
                for name, value in message["headers"]
            }
        elif message["type"] == "http.response.body":
            self.content += message.get("body", b"")
