"""A load generator that is cheaper than what it measures: raw keep-alive connections, one request
at a time on each, a bounded number of requests.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

import httptools
import uvloop

WORDS = "Explain briefly how a suspension bridge carries its load to the towers and anchors"


def request_bytes(
    model: str, *, stream: bool, number: int, words: int = 100, key: str = ""
) -> bytes:
    """Return one chat request; every number is another prompt, so that no cache helps."""
    text = " ".join(f"{WORDS} {number}".split() * (words // 12))
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    ).encode()
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"content-type: application/json\r\n{authorization}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Outcome:
    """What a run of requests gave: seconds each, and how many were answered otherwise than 200."""

    latencies_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    failures: int = 0
    elapsed_s: float = 0.0

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.done: asyncio.Future[None] | None = None
        self.first: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, data: bytes) -> asyncio.Future[None]:
        self.parser = httptools.HttpResponseParser(self)
        self.first = None
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(data)  # type: ignore[attr-defined]
        return self.done

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self.first is None:
            self.first = time.perf_counter()

    def on_message_complete(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(error or ConnectionResetError("closed early"))


async def _run(port: int, requests: list[bytes], connections: int) -> Outcome:
    outcome = Outcome()
    waiting = iter(requests)
    loop = asyncio.get_running_loop()

    async def work() -> None:
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        for data in waiting:
            began = time.perf_counter()
            try:
                await connection.ask(data)
                if connection.parser.get_status_code() != 200:
                    outcome.failures += 1
            except ConnectionError:
                outcome.failures += 1
                _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
                continue
            outcome.latencies_s.append(time.perf_counter() - began)
            if connection.first is not None:
                outcome.first_s.append(connection.first - began)
        connection.transport.close()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(connections)))
    outcome.elapsed_s = time.perf_counter() - began
    return outcome


def run(port: int, requests: list[bytes], *, connections: int) -> Outcome:
    """Send the requests over so many connections and wait for all answers."""
    return uvloop.run(_run(port, requests, connections))
