"""The scoring process: ``python -I -m crossroads.prompts.routerarena.worker [RUNNER]``.

Reads ``jobs.jsonl`` of the folder it is started in and writes ``scores.json`` there: a JSON list,
one score per job. A job that cannot be scored ends it with one line on stderr and code 1.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from crossroads.core.errors import CrossroadsError, UsageError
from crossroads.prompts.routerarena.isolation import JOBS, SCORES, code_seconds
from crossroads.prompts.routerarena.scoring import CodeRunner, score_answer
from crossroads.prompts.scorers import parse_scorer
from crossroads.prompts.scorers.code import run_program


def load_runner(text: str) -> CodeRunner | None:
    """Return the runner of a name: none, a ``code`` scorer, or ``MODULE:FUNCTION``.

    Raises UsageError for anything else.
    """
    if not text:
        return None
    module, _, function = text.partition(":")
    if module == "code":
        parse_scorer(text)  # raises for seconds that are none
        return partial(run_program, seconds=code_seconds(text))
    try:
        runner: CodeRunner = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"code runner {text!r}: {error}; give 'code' or MODULE:FUNCTION of an installed module"
        ) from error
    return runner


def _score(job: dict[str, Any], runner: CodeRunner | None) -> float:
    if job["recorded"] is not None:
        return float(job["recorded"])
    return score_answer(job["metric"], job["answer"], job["references"], run_code=runner)


def main() -> int:
    """Score the jobs of the current folder and return the exit code."""
    try:
        runner = load_runner(sys.argv[1] if len(sys.argv) > 1 else "")
        jobs = Path(JOBS).read_bytes().splitlines()
        scores = [_score(orjson.loads(job), runner) for job in jobs]
    except CrossroadsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    Path(SCORES).write_bytes(orjson.dumps(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
