"""Shared counts in a SQLite file: for the workers of one host.

Time is the machine's monotonic clock, which all processes share. A restart of the machine sets it
back; leases from before are then over, and buckets go on from the level they had.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from crossroads.core.errors import InputError
from crossroads.gateway.governance.accounts import Bucket
from crossroads.gateway.governance.stores.base import (
    Answer,
    Ask,
    Entry,
    Lease,
    StoreError,
    exchange,
    new_entry,
)

_T = TypeVar("_T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY, level INTEGER NOT NULL, last INTEGER NOT NULL, calls INTEGER NOT NULL,
    expires REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    account TEXT NOT NULL, worker TEXT NOT NULL, units INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (account, worker)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS workers (
    name TEXT PRIMARY KEY, expires INTEGER NOT NULL, ttl INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
"""
_WAIT_S = 1.0  # for another worker's transaction, which takes less than a millisecond
_RETRY_S = 0.01
_CLEAN_EVERY_S = 3_600.0


class SqliteStore:
    """Implements ``Store``. Transactions are short and run in a thread of their own.

    ``path`` is the file; it is made when first used, with its folder. Raises InputError where that
    is impossible.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        folder = next(parent for parent in self._path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise InputError(f"store {self._path}: {folder} is no folder; choose another path")
        if not os.access(folder, os.W_OK):
            raise InputError(
                f"store {self._path}: {folder} cannot be written to; choose another path"
            )
        if self._path.is_dir():
            raise InputError(f"store {self._path}: is a folder; give the path of a file in it")
        self._connection: sqlite3.Connection | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="governance")
        self._clean_at = 0.0

    async def exchange(self, worker: str, ttl_ms: int, asks: Sequence[Ask]) -> list[Answer]:
        return await self._run(lambda db: self._exchange(db, worker, ttl_ms, asks))

    async def read(self, name: str) -> bytes | None:
        return await self._run(lambda db: _read(db, name))

    async def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        return await self._run(lambda db: _swap(db, name, old, new))

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._disconnect)
        self._threads.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._transact, work)

    def _transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            db = self._connection or self._connect()
            db.execute("BEGIN IMMEDIATE")
            with db:
                return work(db)
        except (sqlite3.Error, OSError) as error:
            # A file that was replaced or a disk that was full is looked at afresh next time.
            self._disconnect()
            raise StoreError(f"{self._path}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch(mode=0o600)  # who spent what; side files get the same mode
        db = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)
        self._connection = db
        until = time.monotonic() + _WAIT_S
        while True:
            try:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                db.executescript(_SCHEMA)
                return db
            except sqlite3.OperationalError:
                # Workers that start together change the new file's mode, and SQLite does not wait.
                if time.monotonic() >= until:
                    raise
                time.sleep(_RETRY_S)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(
        self, db: sqlite3.Connection, worker: str, ttl_ms: int, asks: Sequence[Ask]
    ) -> list[Answer]:
        now = time.monotonic_ns() // 1_000_000
        db.execute("REPLACE INTO workers VALUES (?, ?, ?)", (worker, now + ttl_ms, ttl_ms))
        # Of an earlier boot of the machine are those that would expire later than they can.
        alive = {
            name
            for name, expires, ttl in db.execute("SELECT name, expires, ttl FROM workers")
            if now < expires <= now + ttl
        }
        answers = []
        for ask in asks:
            entry = _load(db, ask, now)
            answers.append(exchange(entry, ask, worker, now, alive.__contains__))
            _save(db, ask, entry, now)
        if time.time() > self._clean_at:
            self._clean_at = time.time() + _CLEAN_EVERY_S
            _clean(db, alive)
        return answers


def _load(db: sqlite3.Connection, ask: Ask, now: int) -> Entry:
    name = ask.account.name
    row = db.execute("SELECT level, last, calls FROM accounts WHERE name = ?", (name,)).fetchone()
    if row is None:
        entry = new_entry(ask.account, now)
    else:
        entry = new_entry(ask.account, now, row[0], row[1])
        entry.calls = row[2]
    for worker, units, seq in db.execute(
        "SELECT worker, units, seq FROM leases WHERE account = ?", (name,)
    ):
        entry.leases[worker] = Lease(units, seq)
    return entry


def _save(db: sqlite3.Connection, ask: Ask, entry: Entry, now: int) -> None:
    name, state = ask.account.name, entry.state
    level, last = (state.level, state.last) if isinstance(state, Bucket) else (state.spent, now)
    expires = time.time() + ask.account.keep_s
    db.execute(
        "REPLACE INTO accounts VALUES (?, ?, ?, ?, ?)", (name, level, last, entry.calls, expires)
    )
    db.execute("DELETE FROM leases WHERE account = ?", (name,))
    db.executemany(
        "INSERT INTO leases VALUES (?, ?, ?, ?)",
        [(name, worker, lease.units, lease.seq) for worker, lease in entry.leases.items()],
    )


def _clean(db: sqlite3.Connection, alive: set[str]) -> None:
    """Forget accounts that nobody used for long, and workers that hold nothing any more."""
    db.execute("DELETE FROM accounts WHERE expires < ?", (time.time(),))
    db.execute("DELETE FROM leases WHERE account NOT IN (SELECT name FROM accounts)")
    kept = alive | {row[0] for row in db.execute("SELECT DISTINCT worker FROM leases")}
    gone = [(row[0],) for row in db.execute("SELECT name FROM workers") if row[0] not in kept]
    db.executemany("DELETE FROM workers WHERE name = ?", gone)


def _read(db: sqlite3.Connection, name: str) -> bytes | None:
    row = db.execute("SELECT body FROM documents WHERE name = ?", (name,)).fetchone()
    return None if row is None else bytes(row[0])


def _swap(db: sqlite3.Connection, name: str, old: bytes | None, new: bytes) -> bool:
    if _read(db, name) != old:
        return False
    db.execute("REPLACE INTO documents VALUES (?, ?)", (name, new))
    return True
