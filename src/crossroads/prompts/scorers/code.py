"""Scoring by running the answer's Python code against tests, in a process with limits.

The limits are described in ``crossroads.prompts.scorers.sandbox``, those of the working folder in
``crossroads.prompts.scorers.workspace``; they protect a machine from accidents and cheap tricks and
are **not a security boundary**. Score code of models you distrust inside a container or a virtual
machine.

A verdict is believed when the same program, with one test added that cannot hold, fails. Code that
skips tests or speaks in the sandbox' name passes both times and scores 0. Not detected is code that
reads the tests and answers them one by one, or returns objects that equal everything.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import resources
from pathlib import Path

from crossroads.core.errors import UsageError
from crossroads.prompts.scorers.base import Scorer, ScoringError
from crossroads.prompts.scorers.workspace import is_too_large, workspace

DEFAULT_SECONDS = 10.0
LONGEST_SECONDS = 600.0
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
_START_SECONDS = 5.0  # for the interpreter to start on a busy machine, added to the wall clock
_LOOK_SECONDS = 0.02  # between two looks at the clock and into the folder
_RAN = b"."

_BLOCK = re.compile(r"```[ \t]*([A-Za-z0-9_+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = frozenset({"python", "py", "python3"})


def code_scorer(argument: str) -> Scorer:
    """Return the scorer ``code`` or ``code:SECONDS`` (of CPU time). Raises UsageError."""
    try:
        seconds = float(argument or DEFAULT_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_SECONDS:
        raise UsageError(
            f"scorer 'code:{argument}': expected code:SECONDS with 0 < SECONDS <= "
            f"{LONGEST_SECONDS:g}"
        )
    return partial(code, seconds=seconds)


def code(answer: str, references: Sequence[str], *, seconds: float = DEFAULT_SECONDS) -> float:
    """1 if the answer's code and then every reference run to their end without an error.

    The code is what ``extract_code`` finds. Raises ScoringError as ``run_program`` does.
    """
    return run_program(extract_code(answer), "\n".join(references), seconds=seconds)


def run_program(program: str, tests: str, *, seconds: float = DEFAULT_SECONDS) -> float:
    """1 if a program, taken whole, and then its tests run to their end without an error, else 0.

    Fences in the program are part of it. The interpreter has its standard library only, an empty
    working folder and no environment. Raises ScoringError on systems that cannot limit a process.
    """
    if os.name != "posix":
        raise ScoringError("scorer 'code' needs a POSIX system; score inside a Linux container")
    if not _passes(program, tests, seconds, holds=True):
        return 0.0
    return float(not _passes(program, tests, seconds, holds=False))


def extract_code(answer: str) -> str:
    """Return the longest block fenced as Python, else the longest fenced block, else the text."""
    blocks = _BLOCK.findall(answer)
    python = [body for language, body in blocks if language.lower() in _PYTHON]
    bodies: list[str] = python or [body for _, body in blocks] or [answer]
    return max(bodies, key=len)


def _passes(program: str, tests: str, seconds: float, *, holds: bool) -> bool:
    """Whether the sandbox says that program and tests ran to their end.

    After the tests comes one more, a sum that ``holds`` or does not. A program that passes the
    latter has forged the verdict.
    """
    one, other = secrets.randbelow(1 << 30), secrets.randbelow(1 << 30)
    total = one + other + (0 if holds else 1 + secrets.randbelow(1 << 30))
    token = secrets.token_bytes(16)
    tests = f"{tests}\nassert {one} + {other} == {total}\n"
    turns = (
        (program.encode("utf-8", "surrogatepass"), _RAN),
        (tests.encode("utf-8", "surrogatepass"), _RAN),
        (token, token),
    )
    with workspace() as folder, _sandbox(folder, seconds) as process:
        assert process.stdin is not None and process.stdout is not None
        for message, reply in turns:
            try:
                process.stdin.write(len(message).to_bytes(4, "big") + message)
                process.stdin.flush()
            except BrokenPipeError:
                return False
            if _read(process.stdout.fileno(), len(reply)) != reply:
                return False
        return not is_too_large(folder)


def _source() -> str:
    return resources.files(__package__).joinpath("sandbox.py").read_text("utf-8")


@contextmanager
def _sandbox(folder: Path, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Start the sandbox in a folder; kill it at the end, when time is up or the folder full."""
    bounds = {"seconds": math.ceil(seconds), "memory": MEMORY_BYTES, "file_bytes": FILE_BYTES}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _source(), json.dumps(bounds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    is_over = threading.Event()
    deadline = time.monotonic() + seconds + _START_SECONDS

    def watch() -> None:
        while not is_over.wait(_LOOK_SECONDS):
            if time.monotonic() > deadline or is_too_large(folder):
                break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield process
    finally:
        is_over.set()
        watcher.join()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _read(pipe: int, size: int) -> bytes:
    """Return so many bytes, or what arrives before the end of the pipe."""
    found = b""
    while len(found) < size and (portion := os.read(pipe, size - len(found))):
        found += portion
    return found
