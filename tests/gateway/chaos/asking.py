"""A client of the gateway that looks at everything: status, headers, events, how it ended."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.gateway.chaos.configured import HELLO, until

CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Reply:
    """What a client got. ``is_cut`` where the connection ended before the response did."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_cut: bool = False

    @property
    def decision_id(self) -> str:
        return self.headers.get("x-crossroads-decision-id", "")

    @property
    def model(self) -> str:
        return self.headers.get("x-crossroads-model", "")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Parsed events of a stream of chat chunks, without ``[DONE]``."""
        datas = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n") if part]
        return [json.loads(data) for data in datas if data != b"[DONE]"]

    @property
    def is_event_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def text(self) -> str:
        """The answer's text, of JSON or a stream."""
        if not self.is_event_stream:
            return str(self.json["choices"][0]["message"]["content"])
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def error_code(self) -> str:
        """Code of the error, as a status or as the last event; "" where there is none."""
        last = self.events[-1] if self.is_event_stream else self.json
        return str(last["error"]["code"]) if "error" in last else ""

    @property
    def looks_whole(self) -> bool:
        """Whether a client would take this for a complete answer."""
        if self.is_cut or self.status != 200:
            return False
        return self.body.endswith(DONE) if self.is_event_stream else "choices" in self.json


def asked(model: str, *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": HELLO, "stream": stream, **fields}


def ask(
    url: str, model: str = "auto", *, stream: bool = False, key: str = "", **fields: Any
) -> Reply:
    """Ask for one chat completion."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return send(url, "POST", CHAT, asked(model, stream=stream, **fields), headers=headers)


def send(
    url: str, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
) -> Reply:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=15)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        try:
            return Reply(response.status, found, response.read())
        except (http.client.IncompleteRead, ConnectionError) as error:
            part = getattr(error, "partial", b"")
            return Reply(response.status, found, part, is_cut=True)
    finally:
        connection.close()


async def ask_async(
    session: aiohttp.ClientSession, url: str, body: Any, *, key: str = "", **headers: str
) -> Reply:
    """Ask once; a connection that is refused or ends without a head is a status of 0."""
    given = {**headers, "authorization": f"Bearer {key}"} if key else headers
    status, found, parts = 0, {}, []
    try:
        async with session.post(f"{url}{CHAT}", json=body, headers=given) as response:
            status = response.status
            found = {name.lower(): value for name, value in response.headers.items()}
            async for part in response.content.iter_any():
                parts.append(part)
    except (aiohttp.ClientError, ConnectionError):
        return Reply(status, found, b"".join(parts), is_cut=True)
    return Reply(status, found, b"".join(parts))


def new_session(*, reuse: bool = False) -> aiohttp.ClientSession:
    """A session of as many connections as are wanted, by default a new one for each request."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=not reuse),
        timeout=aiohttp.ClientTimeout(total=30),
    )


def ask_all(url: str, bodies: Sequence[Any], *, key: str = "") -> list[Reply]:
    """Ask all at once."""

    async def run() -> list[Reply]:
        async with new_session() as session:
            return await asyncio.gather(*(ask_async(session, url, b, key=key) for b in bodies))

    return asyncio.run(run())


def leave(url: str, model: str, *, stream: bool, is_asked: Callable[[], bool]) -> None:
    """Ask, and close the connection once the model is asked and, of a stream, some has come."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(asked(model, stream=stream)).encode()
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
            % (CHAT.encode(), len(body), body)
        )
        until(is_asked)
        received = b""
        while stream and received.count(b"data: ") < 3:
            received += connection.recv(1000)
