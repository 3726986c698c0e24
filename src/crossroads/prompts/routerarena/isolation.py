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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from crossroads.core.errors import CrossroadsError, InputError

WORKER = "crossroads.prompts.routerarena.worker"
JOBS, SCORES = "jobs.jsonl", "scores.json"
_ROWS_PER_PROCESS = 500  # below that a second interpreter costs more than it saves
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
    cannot be scored, ScoringFailedError where the process dies.
    """
    if not jobs:
        return []
    useful = max(1, -(-len(jobs) // _ROWS_PER_PROCESS))
    count = min(num_processes or os.cpu_count() or 1, useful)
    shares = [jobs[start::count] for start in range(count)]
    with tempfile.TemporaryDirectory(prefix="scoring-") as folder:
        places = [Path(folder) / str(n) for n in range(count)]
        running = [
            _start(share, place, code_runner) for share, place in zip(shares, places, strict=True)
        ]
        try:
            found = [
                _scores(process, place, len(share))
                for process, place, share in zip(running, places, shares, strict=True)
            ]
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    scores = [0.0] * len(jobs)
    for start, values in enumerate(found):
        scores[start::count] = values
    return scores


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


def _scores(process: subprocess.Popen[bytes], place: Path, num_jobs: int) -> list[float]:
    told = process.communicate()[1].decode("utf-8", "replace").strip()
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
