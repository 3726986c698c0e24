"""Outcome tables from the logs of other harnesses: Inspect (``.eval``, ``.json``) and
lm-evaluation-harness (``samples_*.jsonl`` beside ``results_*.json``).

Each log is one model on one task; several logs make a table of several models and tasks. Prompts
are told apart by task and sample id, which must mean the same question in every log; the task
becomes the domain. Repeated epochs of one log are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crossroads.core.errors import InputError
from crossroads.prompts.logs import inspect, lm_eval
from crossroads.prompts.logs.common import Log, combine
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import Pool

__all__ = ["Log", "find_logs", "is_log", "read_log", "read_logs"]


def is_log(path: Path) -> bool:
    """Whether a file is a log of a known harness, by its name and its first bytes."""
    return inspect.is_log(path) or lm_eval.is_log(path)


def find_logs(source: Path) -> list[Path]:
    """Return the logs of a file or, sorted by name, of a folder and its subfolders."""
    if source.is_file():
        return [source] if is_log(source) else []
    kinds = ("*.eval", "*.json", "samples_*.jsonl")
    return sorted(p for kind in kinds for p in source.rglob(kind) if p.is_file() and is_log(p))


def read_log(path: Path, *, metric: str | None = None, filter_name: str | None = None) -> Log:
    """Return one log. See ``read_logs``."""
    if inspect.is_log(path):
        return inspect.read_log(path, metric=metric)
    if lm_eval.is_log(path):
        return lm_eval.read_log(path, metric=metric, filter_name=filter_name)
    raise InputError(
        f"{path}: not a log of a known harness; give Inspect's .eval or .json, or "
        "lm-evaluation-harness' samples_TASK_DATE.jsonl"
    )


def read_logs(
    sources: Sequence[str | Path],
    *,
    metric: str | None = None,
    filter_name: str | None = None,
    pool: Pool | None = None,
    models: Sequence[str] | None = None,
) -> OutcomeTable:
    """Return the outcome table of log files, or of all logs in folders.

    Raises InputError where a file is no log or damaged, where a metric is missing (naming those
    that exist) or not in [0, 1], and where logs contradict each other.

    Parameters
    ----------
    sources : files and folders
    metric : the score to take: a metric of lm-evaluation-harness, a scorer of Inspect, or
        ``SCORER.KEY`` where a scorer gives several values. By default the first of each log
    filter_name : of lm-evaluation-harness, where a task has several; by default the first
    pool : prices; a log's model is the one whose name or ``upstream_model`` it is
    models : the models to keep, in this order
    """
    paths = []
    for source in sources:
        found = find_logs(Path(source)) if Path(source).exists() else None
        if not found:
            problem = "no such file or folder" if found is None else "no log of a known harness"
            raise InputError(
                f"log {str(source)!r}: {problem}; give Inspect's .eval or .json, or "
                "lm-evaluation-harness' samples_TASK_DATE.jsonl"
            )
        paths += found
    logs = [read_log(path, metric=metric, filter_name=filter_name) for path in paths]
    return combine(logs, pool=pool, models=models)
