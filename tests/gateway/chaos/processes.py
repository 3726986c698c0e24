"""Real processes: the gateway as its command, an upstream, and load on it from a thread."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.gateway.servers import descendants, free_port
from benchmarks.gateway.stub import ANSWER, events
from tests.gateway.chaos.asking import Reply, ask_async, new_session
from tests.gateway.chaos.configured import ROOT, until

STUB_JSON = ANSWER
STUB_STREAM_TEXT = "".join(
    event.split(b'"content":"')[1].split(b'"}')[0].decode()
    for event in events()
    if b'"content":"' in event
)
_READY_S = 30.0  # of a machine with other work


@dataclass(frozen=True)
class Gateway:
    """A running ``crossroads serve``."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def workers(self) -> set[int]:
        return set(descendants(self.process.pid))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Drain and end it; return its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=15)


@contextmanager
def gateway(path: Path, *, workers: int = 1) -> Iterator[Gateway]:
    """Run ``crossroads serve --config PATH`` on a free port until the block ends."""
    command = [sys.executable, "-m", "crossroads", "serve", "--config", str(path), "--port", "0"]
    log = path.parent / "gateway.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--workers", str(workers)], stdout=output, stderr=output, cwd=ROOT
        )
    try:
        url = until(lambda: _url_in(log, workers, process), seconds=_READY_S)
        yield Gateway(process, url, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _url_in(log: Path, workers: int, process: subprocess.Popen[bytes]) -> str:
    """Return where the gateway serves, once it says so."""
    said = log.read_text()
    assert process.poll() is None, f"it did not start: {said}"
    wanted = "crossroads serves on " if workers == 1 else f"{workers} workers serve on "
    _, found, rest = said.partition(wanted)
    return rest.split()[0] if found and "\n" in rest else ""


class Stub:
    """The benchmarks' upstream as a process that can be killed and started on its port again."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        program = [sys.executable, str(ROOT / "benchmarks" / "gateway" / "stub.py")]
        self._process = subprocess.Popen(
            [*program, "--port", str(self.port), *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it says so when whom it answers is gone
            text=True,
        )
        assert self._process.stdout is not None
        with self._process.stdout as output:
            assert output.readline().startswith("stub on"), "the stub did not start"

    def kill(self) -> None:
        """End it at once (SIGKILL); safe to repeat."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@dataclass
class Load:
    """Clients that ask again and again, each request on a connection of its own.

    Attributes
    ----------
    replies : with the time each was over, ``time.time``
    """

    url: str
    body: Callable[[int], dict[str, Any]]
    clients: int = 8
    key: str = ""
    replies: list[tuple[float, Reply]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._numbers = itertools.count()
        self._is_over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def go_on(self, num: int) -> None:
        """Wait until so many more replies have come."""
        most = len(self.replies) + num
        until(lambda: len(self.replies), lambda seen: seen >= most, seconds=15.0)

    @property
    def whole(self) -> list[Reply]:
        return [reply for _, reply in self.replies if reply.looks_whole]

    async def _run(self) -> None:
        async with new_session() as session:
            await asyncio.gather(*(self._client(session) for _ in range(self.clients)))

    async def _client(self, session: Any) -> None:
        while not self._is_over:
            body = self.body(next(self._numbers))
            reply = await ask_async(session, self.url, body, key=self.key)
            self.replies.append((time.time(), reply))
            if not reply.looks_whole:
                await asyncio.sleep(0.01)  # nobody hammers a server that is down


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def check_text(reply: Reply) -> None:
    """Assert that a reply that looks whole holds the whole answer of the stub."""
    if reply.looks_whole:
        wanted = STUB_STREAM_TEXT if reply.is_event_stream else "Paris is the capital of"
        assert reply.text.startswith(wanted)
