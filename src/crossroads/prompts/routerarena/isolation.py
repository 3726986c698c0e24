"""Scoring apart from the submission: a process that sees answers and key, and nothing else.

The process is a fresh interpreter in isolated mode (no user site, no ``PYTHON*`` variables, nothing
imported from the current folder), started in an empty folder of its own with an almost empty
environment. It reads the answers as data and never the submitter's folder. Answers are text: the
only ones that are run are programs, by the runner that the board's owner names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from crossroads.core.errors import CrossroadsError, InputError
from crossroads.prompts.scorers.code import DEFAULT_SECONDS

WORKER = "crossroads.prompts.routerarena.worker"
JOBS, SCORES = "jobs.jsonl", "scores.json"
_ROWS_PER_PROCESS = 500  # below that a second interpreter costs more than it saves
_START_SECONDS = 60.0  # for the interpreter and its imports, on a busy machine
_ROW_SECONDS = 1.0
_PROGRAM_SECONDS = 60.0  # beyond the time limit of the library's runner; all a foreign one gets
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")


class ScoringFailedError(CrossroadsError):
    """The scoring process could not do its work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringJob:
    """An answer and what it is compared with; ``recorded`` is a score that needs no comparing."""

    metric: str
    answer: str = ""
    references: tuple[str, ...] = ()
    recorded: float | None = None


def score_apart(
    jobs: Sequence[ScoringJob], *, num_processes: int | None = None, code_runner: str = ""
) -> list[float]:
    """Return the score of each job, in order, computed in ``num_processes`` processes.

    ``code_runner`` is a scorer of the library (``code``, ``code:5``) or ``MODULE:FUNCTION``, called
    with a program and its tests. Raises InputError with the message of the process where a job
    cannot be scored, ScoringFailedError where the process dies or holds out longer than a minute,
    a second per answer and a minute, on top of the runner's own limit, per program.
    """
    if not jobs:
        return []
    useful = max(1, -(-len(jobs) // _ROWS_PER_PROCESS))
    count = min(num_processes or os.cpu_count() or 1, useful)
    shares = [jobs[start::count] for start in range(count)]
    with tempfile.TemporaryDirectory(prefix="scoring-") as folder:
        places = [Path(folder) / str(n) for n in range(count)]
        started = time.monotonic()
        running = [
            _start(share, place, code_runner) for share, place in zip(shares, places, strict=True)
        ]
        try:
            found = [
                _scores(process, place, len(share), started, _longest(share, code_runner))
                for process, place, share in zip(running, places, shares, strict=True)
            ]
        finally:
            for process in running:
                _end(process)
    scores = [0.0] * len(jobs)
    for start, values in enumerate(found):
        scores[start::count] = values
    return scores


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


def code_seconds(code_runner: str) -> float:
    """Return the time limit of a ``code`` or ``code:SECONDS`` runner; 0 for anything else."""
    module, _, seconds = code_runner.partition(":")
    if module != "code":
        return 0.0
    try:
        return float(seconds or DEFAULT_SECONDS)
    except ValueError:
        return 0.0  # the process refuses it


def _longest(jobs: Sequence[ScoringJob], code_runner: str) -> float:
    """Return the seconds after which the process of these jobs is given up."""
    num_programs = sum(job.metric == "code_accuracy" for job in jobs)
    per_program = code_seconds(code_runner) + _PROGRAM_SECONDS
    return _START_SECONDS + _ROW_SECONDS * len(jobs) + per_program * num_programs


def _start(jobs: Sequence[ScoringJob], place: Path, code_runner: str) -> subprocess.Popen[bytes]:
    place.mkdir()
    with (place / JOBS).open("wb") as file:
        for job in jobs:
            file.write(orjson.dumps(job) + b"\n")
    return subprocess.Popen(
        [sys.executable, "-I", "-m", WORKER, code_runner],
        cwd=place,
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _scores(
    process: subprocess.Popen[bytes], place: Path, num_jobs: int, started: float, seconds: float
) -> list[float]:
    try:
        left = max(0.0, started + seconds - time.monotonic())
        errors = process.communicate(timeout=left)[1]
    except subprocess.TimeoutExpired as error:
        raise ScoringFailedError(
            f"scoring: {num_jobs} answers were not scored in {seconds:.0f} s; "
            "run it again with more --jobs, or take out the answer that holds it up"
        ) from error
    told = errors.decode("utf-8", "replace").strip()
    if process.returncode == 1 and told.startswith("error: "):
        raise InputError(told.removeprefix("error: "))
    path = place / SCORES
    if process.returncode != 0 or not path.exists():
        last = told.splitlines()[-1] if told else "no message"
        raise ScoringFailedError(
            f"scoring: the process ended with code {process.returncode} ({last:.200}); "
            "run it again, or with --jobs 1"
        )
    scores = [float(value) for value in orjson.loads(path.read_bytes())]
    assert len(scores) == num_jobs
    return scores
