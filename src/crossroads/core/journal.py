"""A file that only grows: one JSON object a line, each on the disk before it counts.

A process that is killed loses nothing it was told is kept; the line it was writing is cut off when
the file is read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import orjson

from crossroads.core.errors import InputError

Entry = TypeVar("Entry")


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry; it is on the disk on return. Raises InputError where it cannot be."""
    try:
        with path.open("ab") as file:
            file.write(orjson.dumps(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def read_lines(path: Path, entry: Callable[[Any], Entry], *, remedy: str) -> list[Entry]:
    """Return what ``entry`` makes of each object; empty where there is no file.

    ``entry`` raises TypeError or KeyError for an object of another kind. Raises InputError naming
    the first damaged line and ``remedy``.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    entries = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            entries.append(entry(orjson.loads(line)))
        except (orjson.JSONDecodeError, TypeError, KeyError) as error:
            raise InputError(f"{path}: line {number} is damaged; {remedy}") from error
    return entries
