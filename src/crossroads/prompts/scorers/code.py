"""Scoring by running the answer's Python code against tests, in a process with limits.

The limits are described in ``crossroads.prompts.scorers.sandbox``; they protect a machine from
accidents and cheap tricks and are **not a security boundary**. Score code of models you distrust
inside a container or a virtual machine.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import resources

import orjson

from crossroads.core.errors import UsageError
from crossroads.prompts.scorers.base import Scorer, ScoringError

DEFAULT_SECONDS = 10.0
LONGEST_SECONDS = 600.0
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
_START_SECONDS = 5.0  # for the interpreter to start on a busy machine, added to the wall clock
_LONGEST_VERDICT = 64  # bytes: code that floods the pipe is not listened to

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
    token = secrets.token_hex(16)
    job = {
        "code": program,
        "tests": tests,
        "token": token,
        "seconds": math.ceil(seconds),
        "memory": MEMORY_BYTES,
        "file_bytes": FILE_BYTES,
    }
    return float(_run(orjson.dumps(job), seconds + _START_SECONDS) == token.encode())


def extract_code(answer: str) -> str:
    """Return the longest block fenced as Python, else the longest fenced block, else the text."""
    blocks = _BLOCK.findall(answer)
    python = [body for language, body in blocks if language.lower() in _PYTHON]
    bodies: list[str] = python or [body for _, body in blocks] or [answer]
    return max(bodies, key=len)


def _run(job: bytes, seconds: float) -> bytes:
    """Run the sandbox on a job; return what it wrote, whatever became of it."""
    program = resources.files(__package__).joinpath("sandbox.py").read_text("utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(job)
            return _read_some(process.stdout.fileno(), time.monotonic() + seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


def _read_some(pipe: int, deadline: float) -> bytes:
    """Return what arrives before the end of the pipe, the deadline, or more bytes than a token."""
    found = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(found) <= _LONGEST_VERDICT and selector.select(deadline - time.monotonic()):
            portion = os.read(pipe, _LONGEST_VERDICT)
            if not portion:
                break
            found += portion
    return found
