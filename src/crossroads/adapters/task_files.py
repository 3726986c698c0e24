"""Tasks of a file, a row a line: {"task": .., "prompt": .., "answer": .., "options": [..]}.

An expert whose name is the task's was trained on it; tasks without one are held out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crossroads.adapters.collection.batches import row_tokens
from crossroads.adapters.collection.rows import Row
from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.lessons import TOKENS
from crossroads.core.errors import InputError

_KEYS = ("task", "prompt", "answer", "options")


def read_tasks(
    path: Path,
    experts: Sequence[str],
    tokenizer: Any,
    *,
    length: int,
    say: Callable[[str], None] | None = None,
) -> list[Task]:
    """Return the tasks of a JSONL file, in the order they first occur; all rows are for testing.

    Raises InputError naming file and line; file and task where every row of a task is too long.

    Parameters
    ----------
    experts : names of the bank
    tokenizer : of the base model
    length : tokens of prompt and longest option together; longer rows are left out, and a row that
        is there twice is one row
    say : called with a line for each of the two kinds of rows that do not count
    """
    found: dict[str, _Found] = {}
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            task, row = _row(line, f"{path}, line {number}")
            found.setdefault(task, _Found()).add(row, number, row_tokens(tokenizer, row) <= length)
    if not found:
        raise InputError(f'{path}: holds no rows; expected a line {{"task", "prompt", "answer"}}')
    for name, one in found.items():
        if not one.rows:
            raise InputError(
                f"{path}: task {name}: no row has at most {length} tokens with its longest option, "
                f"which the model reads; shorten them (the first is in line {one.long[0]})"
            )
    if say is not None:
        for line in _left_out(path, found, length):
            say(line)
    return [
        Task(
            name=name,
            frame="",
            about=f"rows of {path.name}",
            rows={"train": (), "validation": (), "test": tuple(one.rows)},
            held_in=name in experts,
            length=length,
            batch=1,
        )
        for name, one in found.items()
    ]


def check_tasks(path: Path) -> None:
    """Raise InputError for a file that ``read_tasks`` refuses whatever the model."""
    lines = list(enumerate(_lines(path), start=1))
    if not [_row(line, f"{path}, line {number}") for number, line in lines if line.strip()]:
        raise InputError(f'{path}: holds no rows; expected a line {{"task", "prompt", "answer"}}')


def read_lessons(
    path: Path,
    experts: Sequence[str],
    tokenizer: Any,
    *,
    most: int,
    say: Callable[[str], None] | None = None,
) -> list[Task]:
    """Return the tasks of a JSONL file with all rows to learn from; see ``read_tasks``.

    A task is as long as its longest row of at most ``most`` tokens; its batches have about 512.
    """
    found = []
    for task in read_tasks(path, experts, tokenizer, length=most, say=say):
        length = max(row_tokens(tokenizer, row) for row in task.rows["test"])
        found.append(
            replace(
                task,
                rows={"train": task.rows["test"], "validation": (), "test": ()},
                length=length,
                batch=max(1, TOKENS // length),
            )
        )
    return found


@dataclass(kw_only=True)
class _Found:
    """Rows of a task, and the lines of those that do not count."""

    rows: dict[Row, None] = field(default_factory=dict)
    long: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)

    def add(self, row: Row, line: int, fits: bool) -> None:
        if row in self.rows:
            self.again.append(line)
        elif fits:
            self.rows[row] = None
        else:
            self.long.append(line)


def _left_out(path: Path, found: dict[str, _Found], length: int) -> list[str]:
    told = (
        ("long", f"of more than {length} tokens left out"),
        ("again", "left out that stood there before"),
    )
    said = []
    for kind, what in told:
        lines = sorted(line for one in found.values() for line in getattr(one, kind))
        if lines:
            rows = "1 row" if len(lines) == 1 else f"{len(lines)} rows"
            said.append(f"{path}: {rows} {what}, the first in line {lines[0]}")
    return said


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines: texts may hold the other ends of lines that Unicode knows.
        return path.read_text("utf-8").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give a file of rows, one a line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _row(line: str, where: str) -> tuple[str, Row]:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}") from error
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object, got {type(entry).__name__}")
    for name in entry:
        if name not in _KEYS:
            raise InputError(f"{where}: unknown key {name!r}; expected {', '.join(_KEYS)}")
    for name in ("task", "prompt", "answer"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise InputError(f"{where}: {name}: expected a text, got {entry.get(name)!r}")
    options = entry.get("options")
    if options is not None:
        if not isinstance(options, list) or not all(isinstance(o, str) and o for o in options):
            raise InputError(f"{where}: options: expected a list of texts, got {options!r}")
        if entry["answer"] not in options:
            raise InputError(f"{where}: options: the answer {entry['answer']!r} is not among them")
        if len(set(options)) < 2:
            raise InputError(
                f"{where}: options: expected two different ones or more, got {options!r}; leave "
                "options out where answers are free"
            )
        options = tuple(options)
    return entry["task"], Row(prompt=entry["prompt"], answer=entry["answer"], options=options)
