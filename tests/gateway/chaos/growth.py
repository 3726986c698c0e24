"""Serves a configuration, sends it mixed requests, and prints what each half of them left behind.

Usage: python -m tests.gateway.chaos.growth CONFIG REQUESTS
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import aiohttp

from tests.gateway.chaos.asking import ask_async, asked, new_session
from tests.gateway.chaos.configured import runtime_of
from tests.gateway.serving import serving_runtime

_TURN = 50  # requests at a time


def bodies(start: int) -> list[dict[str, Any]]:
    """JSON, streams, repeated and new prompts, a wrong model, a wrong field."""
    found = []
    for number in range(start, start + _TURN):
        text = f"question {number if number % 5 else 0}"
        messages = [{"role": "user", "content": text}]
        body = asked("auto", stream=bool(number % 2), messages=messages)
        if number % 17 == 0:
            body["model"] = f"unknown-{number}"
        if number % 19 == 0:
            body["messages"] = number
        found.append(body)
    return found


async def leave(session: aiohttp.ClientSession, url: str) -> None:
    """Ask for a stream and close the connection at its first byte."""
    body = asked("ok", stream=True)
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        await response.content.read(1)
        response.close()


async def load(url: str, start: int, num: int) -> None:
    async with new_session(reuse=True) as session:
        for at in range(start, start + num, _TURN):
            calls = [
                ask_async(session, url, body, **_key(at + k)) for k, body in enumerate(bodies(at))
            ]
            await asyncio.gather(*calls, *(leave(session, url) for _ in range(3)))


def _key(number: int) -> dict[str, str]:
    return {"idempotency-key": f"key-{number}"} if number % 7 == 0 else {}


def main(path: str, num: int) -> None:
    runtime = runtime_of(Path(path))
    loops: list[asyncio.AbstractEventLoop] = []
    start = runtime.gateway.start

    async def remember_loop() -> None:
        loops.append(asyncio.get_running_loop())
        await start()

    runtime.gateway.start = remember_loop  # type: ignore[method-assign]
    halves = []
    with serving_runtime(runtime) as url:
        num_kept = _num_sockets() + runtime.config.upstreams.max_idle
        asyncio.run(load(url, 0, 6 * _TURN))  # what is made once is made
        tracemalloc.start()
        for half in (1, 2):
            asyncio.run(load(url, half * num, num // 2))
            assert runtime.ledger is not None
            runtime.ledger.flush()
            _until_closed(num_kept)
            gc.collect()
            halves.append(
                {
                    "tasks": len(asyncio.all_tasks(loops[0])),
                    "sockets": _num_sockets(),
                    "threads": threading.active_count(),
                    "traced_bytes": tracemalloc.get_traced_memory()[0],
                }
            )
    sys.stdout.write(json.dumps({"halves": halves}))


def _until_closed(num_kept: int) -> None:
    """Wait until clients' connections are gone: a busy machine closes them late."""
    deadline = time.monotonic() + 60.0
    while _num_sockets() > num_kept and time.monotonic() < deadline:
        time.sleep(0.05)


def _num_sockets() -> int:
    return sum(_is_socket(link) for link in Path("/proc/self/fd").iterdir())


def _is_socket(link: Path) -> bool:
    try:
        return "socket:" in str(link.readlink())
    except (
        FileNotFoundError
    ):  # the gateway's threads may close it between the listing and this look
        return False


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
