"""Clients that leave before their answer was handed over, on both HTTP implementations."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from crossroads.core.http.timeouts import Timeouts
from crossroads.gateway import exchange
from crossroads.gateway.contracts import Record
from crossroads.gateway.exchange import Message
from crossroads.gateway.serving.line import KEY, Line
from crossroads.gateway.upstreams.build import build_upstreams
from crossroads.prompts.experts.tools import ToolExpert
from crossroads.prompts.pool import ModelCard
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.http_front import front, read_all
from tests.gateway.serving import as_upstream, gateway_of

HELLO = [{"role": "user", "content": "hello"}]


class Rows:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.found: list[Record] = []

    def append(self, record: Record) -> None:
        self.found.append(record)

    def only(self) -> Record:
        """Wait for the first; return it."""
        until = time.monotonic() + 5
        while not self.found and time.monotonic() < until:
            time.sleep(0.005)
        (record,) = self.found
        return record


@pytest.fixture(params=["standard", "fast"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watches by time."""
    monkeypatch.setattr(exchange, "_WATCH_AFTER_S", 3600)


def asking(model: str, *, stream: bool) -> bytes:
    body = json.dumps({"model": model, "messages": HELLO, "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nconnection: close\r\n"
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def gateway(upstream: FakeUpstream, behaviour: str, rows: Rows) -> Any:
    card = ModelCard(name="m", endpoint=upstream.url, upstream_model=behaviour)
    return gateway_of(build_upstreams([card], timeouts=Timeouts()), ledger=rows)


@pytest.mark.parametrize("stream", [False, True])
def test_the_upstream_is_cancelled_by_the_connection_that_is_lost(kind: str, stream: bool) -> None:
    rows = Rows()
    behaviour = "trickle-5" if stream else "slow-30"
    with (
        FakeUpstream() as upstream,
        front(kind, gateway(upstream, behaviour, rows), lifespan="on") as port,
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(asking("m", stream=stream))
            while not upstream.requests:
                time.sleep(0.005)
        assert upstream.abandoned.wait(5)
        row = rows.only()
    assert (row.status, row.error, row.is_complete) == (499, "client_gone", False)


def test_an_answer_that_waits_for_its_reader_is_not_whole_once_he_left(kind: str) -> None:
    rows = Rows()
    with (
        FakeUpstream() as upstream,
        front(kind, gateway(upstream, "long-2000", rows), lifespan="on") as port,
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(asking("m", stream=True))
            assert connection.recv(1000)
        row = rows.only()
    assert (row.status, row.error, row.is_complete) == (499, "client_gone", False)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_written_before_the_client_leaves_is_whole(kind: str, stream: bool) -> None:
    rows = Rows()
    with (
        FakeUpstream() as upstream,
        front(kind, gateway(upstream, "ok", rows), lifespan="on") as port,
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(asking("m", stream=stream))
            assert b"200 OK" in read_all(connection)
        row = rows.only()
    assert (row.status, row.error, row.is_complete) == (200, "", True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_whole_answer_whose_last_byte_found_nobody_is_not_complete(stream: bool) -> None:
    rows, line = Rows(), Line()
    expert = ToolExpert(name="echo", answer=lambda text: text.upper(), refusal="")
    body = json.dumps({"model": "echo", "messages": HELLO, "stream": stream}).encode()
    path = "/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], KEY: line}

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            line.cut()  # while the connection takes no more
            await asyncio.sleep(0)

    gateway = gateway_of({"echo": as_upstream(expert)}, ledger=rows)
    asyncio.run(gateway(scope, receive, send))
    row = rows.only()
    assert (row.status, row.error, row.is_complete) == (499, "client_gone", False)
    assert row.finish == "stop"
