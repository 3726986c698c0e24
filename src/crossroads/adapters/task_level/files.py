"""Tasks of a file, a row a line: {"task": .., "prompt": .., "answer": .., "options": [..]}.

An expert whose name is the task's was trained on it; tasks without one are held out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossroads.adapters.collection.batches import fitting, row_tokens
from crossroads.adapters.collection.rows import Row
from crossroads.adapters.collection.tasks import Task
from crossroads.core.errors import InputError

_BATCH_TOKENS = 512


def read_tasks(path: Path, experts: Sequence[str], *, length: int) -> list[Task]:
    """Return the tasks of a JSONL file, in the order they first occur; all rows are for testing.

    Parameters
    ----------
    experts : names of the bank
    length : tokens of prompt and answer together; longer rows are left out of measurements

    Raises InputError naming file and line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    rows: dict[str, list[Row]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            task, row = _row(line, f"{path}, line {number}")
            rows.setdefault(task, []).append(row)
    if not rows:
        raise InputError(f'{path}: holds no rows; expected a line {{"task", "prompt", "answer"}}')
    return [
        Task(
            name=name,
            frame="",
            about=f"rows of {path.name}",
            rows={"train": (), "validation": (), "test": tuple(dict.fromkeys(found))},
            held_in=name in experts,
            length=length,
            batch=1,
        )
        for name, found in rows.items()
    ]


def read_lessons(path: Path, experts: Sequence[str], tokenizer: Any, *, most: int) -> list[Task]:
    """Return the tasks of a JSONL file with all rows to learn from; see ``read_tasks``.

    A task is as long as its longest row of at most ``most`` tokens; its batches have about 512.
    """
    found = []
    for task in read_tasks(path, experts, length=most):
        rows = fitting(tokenizer, task, "test")
        length = max(row_tokens(tokenizer, row) for row in rows)
        found.append(
            replace(
                task,
                rows={"train": tuple(rows), "validation": (), "test": ()},
                length=length,
                batch=max(1, _BATCH_TOKENS // length),
            )
        )
    return found


def _row(line: str, where: str) -> tuple[str, Row]:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: no JSON: {error}") from error
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object, got {type(entry).__name__}")
    for name in ("task", "prompt", "answer"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise InputError(f"{where}: {name}: expected a text, got {entry.get(name)!r}")
    options = entry.get("options")
    if options is not None:
        if not isinstance(options, list) or not all(isinstance(o, str) and o for o in options):
            raise InputError(f"{where}: options: expected a list of texts, got {options!r}")
        if entry["answer"] not in options:
            raise InputError(f"{where}: options: the answer {entry['answer']!r} is not among them")
        options = tuple(options)
    return entry["task"], Row(prompt=entry["prompt"], answer=entry["answer"], options=options)
