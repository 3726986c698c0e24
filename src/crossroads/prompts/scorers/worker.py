"""A process for work that may never end: it is asked, waited for, and replaced when it is late.

The parent writes one JSON line a job and reads one JSON line back. The worker bounds its own memory
and ends with its parent, whose end of the pipe closes.
"""

from __future__ import annotations

import atexit
import importlib
import os
import selectors
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from typing import Any

import orjson

from crossroads.prompts.scorers.base import ScoringError

_MEMORY = 1 << 30  # bytes of address space
_START = 60.0  # seconds for the first job, which imports its library on a busy machine

# job -> module and function that does it, in the worker
_JOBS = {
    "regex": ("crossroads.prompts.scorers.regex", "last_match"),
    "symbolic": ("crossroads.prompts.scorers.symbolic", "is_equal"),
    "warm": ("crossroads.prompts.scorers.worker", "warm"),
}


class WorkerTimeoutError(Exception):
    """The worker did not answer in time, or died of its limits."""


class Worker:
    """One worker process, started when first asked and again after it was late."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._warm: set[str] = set()

    def ask(self, job: str, arguments: list[Any], *, seconds: float) -> Any:
        """Return what the job returns. One job at a time; others wait.

        Raises WorkerTimeoutError after ``seconds`` or where the job killed the worker, ValueError
        with the message of whatever the job raised, ScoringError where no worker starts.
        """
        with self._lock:
            if job not in self._warm:  # importing a library is not counted against the job
                try:
                    self._exchange("warm", [job], _START)
                except (WorkerTimeoutError, ValueError) as error:
                    raise ScoringError(f"the worker of scorers does not start: {error}") from error
                self._warm.add(job)
            return self._exchange(job, arguments, seconds)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _exchange(self, job: str, arguments: list[Any], seconds: float) -> Any:
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(orjson.dumps([job, arguments]) + b"\n")
            process.stdin.flush()
            line = _read_line(process, seconds)
        except (OSError, EOFError, TimeoutError) as error:
            self._end()
            raise WorkerTimeoutError(f"{job}: no result within {seconds:g} s") from error
        answer = orjson.loads(line)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer["result"]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self._process

    def _end(self) -> None:
        self._warm.clear()
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # unsent bytes for a process that is gone
                if pipe is not None:
                    pipe.close()


@cache
def shared_worker() -> Worker:
    """Return this process's worker; it ends with the interpreter."""
    worker = Worker()
    atexit.register(worker.close)
    return worker


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return the next whole line. Raises TimeoutError, EOFError."""
    assert process.stdout is not None
    deadline, line = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise TimeoutError
            portion = os.read(process.stdout.fileno(), 1 << 16)
            if not portion:
                raise EOFError
            line += portion
    return line


def warm(job: str) -> None:
    """Import what a job needs."""
    module, _ = _JOBS[job]
    loaded = importlib.import_module(module)
    load = getattr(loaded, "load", None)
    if load is not None:
        load()


def serve() -> None:
    """Do the jobs of the parent until the pipe closes: what the worker process runs."""
    with suppress(ImportError):  # no limits on systems without them
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for line in sys.stdin.buffer:
        job, arguments = orjson.loads(line)
        module, function = _JOBS[job]
        try:
            answer = {"result": getattr(importlib.import_module(module), function)(*arguments)}
        except Exception as error:  # noqa: BLE001 - whatever a library says of a strange text
            answer = {"refused": f"{type(error).__name__}: {error}"}
        sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
        sys.stdout.buffer.flush()
