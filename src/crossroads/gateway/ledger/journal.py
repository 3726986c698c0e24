"""Rows that the database did not take, kept in a file until it does.

Every process has a journal of its own and holds a lock on it while it lives; a journal whose lock
is free belonged to a process that died, and whoever opens the ledger next replays it. A journal
that somebody removes under us is written again, with what it held.
"""

from __future__ import annotations

import base64
import fcntl
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossroads.core.errors import InputError
from crossroads.core.journal import append_line, read_lines
from crossroads.gateway.ledger.schema import COLUMNS, Row

_log = logging.getLogger(__name__)

_REMEDY = "it is put aside; correct the line and rename it to .jsonl to have its rows"


class Journal:
    """The journal of this process; safe to append to from several threads.

    Parameters
    ----------
    folder : where journals of this ledger stand; made when the first row is written
    prefix : how their names begin
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self.path = folder / f"{prefix}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self.num_rows = 0
        self.damaged: list[str] = []  # files put aside
        self._lock = threading.Lock()
        self._held: int | None = None
        self._num_entries = self._num_taken = 0  # of the file; those that were taken

    def append(self, table: str, rows: Sequence[Row]) -> None:
        """Add rows; they are on the disk on return. Raises InputError where they cannot be."""
        entry = {
            "table": table,
            "columns": list(COLUMNS[table]),
            "rows": [[_to_json(value) for value in row] for row in rows],
        }
        with self._lock, _naming(self.path):
            self._hold()
            size = self.path.stat().st_size
            try:
                append_line(self.path, entry)
            except InputError:
                os.truncate(self.path, size)  # half a line would spoil the next one
                raise
            self.num_rows += len(rows)
            self._num_entries += 1

    def take(self) -> Generator[tuple[str, list[Row]], None, None]:
        """Yield the table and rows of each entry; the file is removed when all were taken.

        A caller that stops before the end keeps the file, and rows appended meanwhile keep it, too:
        taking again goes on with the entry that was not done. Raises InputError where the file
        cannot be read or removed; nothing is lost by that.
        """
        with self._lock:
            if self._held is None:
                return
            with _naming(self.path):
                self._hold()
            entries, num_entries = self._entries(self.path), self._num_entries
            if not self.path.exists():  # put aside
                self._release()
                return
        # Not under the lock: a database that hangs must keep nobody from appending.
        for table, rows in entries[self._num_taken :]:
            yield table, rows
            with self._lock:
                self.num_rows -= len(rows)
                self._num_taken += 1
        with self._lock, _naming(self.path):
            if self._held is not None and self._num_entries == num_entries:
                self._release()

    def adopt(self) -> Generator[tuple[str, list[Row]], None, None]:
        """Yield the entries of journals whose processes are gone, removing each after its last.

        Raises InputError as ``take``.
        """
        for path in sorted(self._folder.glob(f"{self._prefix}-*.jsonl")):
            if path == self.path:
                continue
            held = _lock_file(path)
            if held is None:
                continue
            try:
                yield from self._entries(path)
                with _naming(path):
                    path.unlink(missing_ok=True)
            finally:
                os.close(held)

    def close(self) -> None:
        """Let the lock go; a file that still holds rows stays for the next process."""
        with self._lock:
            if self._held is not None:
                os.close(self._held)
                self._held = None

    def _entries(self, path: Path) -> list[tuple[str, list[Row]]]:
        """Return a file's entries; a damaged file is put aside, so that it holds nobody up."""
        with _naming(path):
            try:
                return read_lines(path, _entry, remedy=_REMEDY)
            except InputError as error:
                aside = path.with_suffix(".damaged")
                path.rename(aside)
                self.damaged.append(str(aside))
                _log.error("ledger: a journal is put aside as %s: %s", aside.name, error)
                return []

    def _hold(self) -> None:
        """Have the file, locked; one that was removed meanwhile is made again, rows and all."""
        before = self._held
        if before is not None and _is_at(self.path, before):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        held = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if before is not None:
                _copy(before, held)
        except BaseException:
            # A part of what it held would pass for all of it at the next look.
            self.path.unlink(missing_ok=True)
            os.close(held)
            raise
        if before is not None:
            os.close(before)
            _log.warning("ledger: the journal %s was removed; it is written again", self.path.name)
        self._held = held

    def _release(self) -> None:
        assert self._held is not None
        self.path.unlink(missing_ok=True)
        os.close(self._held)
        self._held = None
        self.num_rows = self._num_entries = self._num_taken = 0


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an OSError into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot be used: {reason}; free the disk, or make its folder writable"
        ) from error


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _copy(source: int, target: int) -> None:
    """Write all of one open file to another one, which is empty; on the disk on return."""
    os.lseek(source, 0, os.SEEK_SET)
    with open(source, "rb", closefd=False) as old, open(target, "wb", closefd=False) as new:
        shutil.copyfileobj(old, new)
    os.fsync(target)


def _lock_file(path: Path) -> int | None:
    """Return a locked descriptor, None where the file's process lives or the file is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _entry(entry: Any) -> tuple[str, list[Row]]:
    """Return an entry's rows in the columns of this version; columns it lacks are empty."""
    table = entry["table"]
    place = {name: number for number, name in enumerate(entry["columns"])}
    picked = [place.get(name) for name in COLUMNS[table]]
    rows = [
        tuple(None if at is None else _from_json(row[at]) for at in picked) for row in entry["rows"]
    ]
    return table, rows


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return value


def _from_json(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value
