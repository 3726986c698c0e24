"""An upstream in a process of its own: the stub of the benchmarks, its faults, and its death."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from crossroads.gateway.call import Event
from crossroads.gateway.contracts import Order, Upstream
from crossroads.gateway.upstreams import build_upstream
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard
from tests.core.http.servers import SHORT
from tests.gateway.upstreams.chats import HELLO

STUB = Path(__file__).parents[3] / "benchmarks" / "gateway" / "stub.py"


@contextmanager
def stub(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the stub; yield its process and its port."""
    process = subprocess.Popen(
        [sys.executable, str(STUB), *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline().split()[2].split(":")[1])
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


async def upstream_at(port: int) -> Upstream:
    card = ModelCard(name="m", endpoint=f"http://127.0.0.1:{port}/v1")
    upstream = build_upstream(card, timeouts=SHORT)
    await upstream.start()
    return upstream


async def stream(upstream: Upstream) -> tuple[list[Event], str | None]:
    """Return the events of one stream and the code of its error."""
    events: list[Event] = []
    try:
        async for batch in upstream.stream(Order(dialect="chat", body=HELLO)):
            events += batch
    except ExpertError as error:
        return events, error.code
    return events, None


def test_the_stub_answers_and_streams_a_fixed_text() -> None:
    async def check(port: int) -> None:
        upstream = await upstream_at(port)
        answer = await upstream.complete(Order(dialect="chat", body=HELLO))
        assert len(orjson.dumps(answer)) == 294
        events, code = await stream(upstream)
        assert (len(events), code) == (22, None)  # and [DONE]
        await upstream.close()

    with stub() as (_, port):
        asyncio.run(check(port))


@pytest.mark.parametrize(
    ("fault", "num_events", "code"),
    [
        ("cut-after:5", 5, "upstream_cut"),
        ("cut-after:0", 0, "upstream_unavailable"),
        ("stall-after:5", 5, "upstream_timeout"),
        ("malformed-at:5", 5, "upstream_invalid"),
        ("status:500", 0, "upstream_error"),
        ("no-done", 22, None),
    ],
)
def test_the_stub_fails_as_told(fault: str, num_events: int, code: str | None) -> None:
    async def check(port: int) -> None:
        upstream = await upstream_at(port)
        events, got = await stream(upstream)
        assert (len(events), got) == (num_events, code)
        await upstream.close()

    with stub("--fault", fault) as (_, port):
        asyncio.run(check(port))


def test_a_killed_upstream_under_load_never_looks_whole_and_is_used_again_when_it_is_back() -> None:
    outcomes: list[tuple[int, str | None]] = []

    async def ask(upstream: Upstream, stop: asyncio.Event) -> None:
        while not stop.is_set():
            events, code = await stream(upstream)
            outcomes.append((len(events), code))
            if code == "upstream_unavailable":
                await asyncio.sleep(0.01)

    async def check(first: subprocess.Popen[str], port: int) -> None:
        upstream, stop = await upstream_at(port), asyncio.Event()
        load = [asyncio.ensure_future(ask(upstream, stop)) for _ in range(8)]
        while len(outcomes) < len(load):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # in the middle of the streams after the first
        first.kill()
        while "upstream_unavailable" not in {code for _, code in outcomes}:
            await asyncio.sleep(0.01)
        num_before = len(outcomes)
        with stub("--port", str(port)):
            while outcomes[-1] != (22, None) or len(outcomes) == num_before:
                await asyncio.sleep(0.01)
            stop.set()
            await asyncio.gather(*load)
            await upstream.close()

    with stub("--gap", "0.015") as (first, port):
        asyncio.run(check(first, port))
    whole = [outcome for outcome in outcomes if outcome[1] is None]
    assert whole
    assert all(num_events == 22 for num_events, _ in whole)
    assert {code for _, code in outcomes} >= {None, "upstream_unavailable"}
    assert any(0 < num_events < 22 and code == "upstream_cut" for num_events, code in outcomes)
