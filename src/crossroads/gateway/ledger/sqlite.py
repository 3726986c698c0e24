"""A ledger in one SQLite file, shared by the processes of one machine.

Write-ahead logging with ``synchronous=NORMAL``: what was committed survives the process, and a
power cut may take the last commits but never damages the file. Rows go in by statements of many
rows, because the interpreter's lock is handed over at every statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from crossroads.core.errors import UnavailableError
from crossroads.gateway.ledger.schema import COLUMNS, KEYS, SQLITE_WORDS, Row, migrations
from crossroads.gateway.ledger.store import BadRowError, newer_schema, not_a_ledger

_OURS = 0x43524C47  # application_id of a ledger's file: CRLG
_ROWS_PER_STATEMENT = 32  # times the columns stays far below SQLite's limit of parameters


class SqliteStore:
    """One connection to a ledger's file; made with its folder where it is not there.

    Parameters
    ----------
    path : the file
    timeout_s : seconds to wait for another process's transaction
    is_reader : never make a ledger where there is none
    """

    def __init__(self, path: Path, *, timeout_s: float = 5.0, is_reader: bool = False) -> None:
        self.path = path
        self._is_reader = is_reader
        self._timeout_s = timeout_s
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        if self._connection is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._is_reader:
                self.path.touch(mode=0o600)  # it may hold prompts; side files get the same mode
            connection = sqlite3.connect(
                self.path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unavailable(error) from error
        try:
            self._check_ours(connection)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA temp_store=MEMORY")  # else a file for every statement
            self._migrate(connection)
        except sqlite3.Error as error:
            connection.close()
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise not_a_ledger(f"sqlite:{self.path}") from error
            raise self._unavailable(error) from error
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        steps = migrations(SQLITE_WORDS)
        if _version(connection) == len(steps):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection)  # another process may have been first
            if version > len(steps):
                raise newer_schema(f"sqlite:{self.path}", version, len(steps))
            for statements in steps[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={_OURS}")
            connection.execute(f"PRAGMA user_version={len(steps)}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _check_ours(self, connection: sqlite3.Connection) -> None:
        """Refuse a database of something else: nothing is ever added to one."""
        (kind,) = connection.execute("PRAGMA application_id").fetchone()
        if kind == _OURS:
            return
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        # made by another process at this moment, between the two looks
        (kind,) = connection.execute("PRAGMA application_id").fetchone()
        if kind != _OURS and (tables or self._is_reader):
            raise not_a_ledger(f"sqlite:{self.path}")

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        connection = self._opened()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for start in range(0, len(rows), _ROWS_PER_STATEMENT):
                part = rows[start : start + _ROWS_PER_STATEMENT]
                values = [value for row in part for value in row]
                connection.execute(_insertion(table, len(part)), values)
            connection.execute("COMMIT")
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
            self._give_up(connection)
            if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
                raise BadRowError(str(error)) from error
            if isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError):
                raise BadRowError(str(error)) from error
            raise self._unavailable(error) from error
        except (OverflowError, ValueError, TypeError) as error:
            self._give_up(connection)
            raise BadRowError(str(error)) from error

    def _give_up(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:  # a broken connection is replaced
                self.close()

    def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        try:
            return self._opened().execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        try:
            return self._opened().execute(sql, parameters).rowcount
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def number_at(self, column: str) -> str:
        return f"(SELECT value FROM json_each({column}) WHERE key = ?)"

    def each_number(self, column: str) -> str:
        return f"json_each({column}) AS each_number"

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self.open()
        assert self._connection is not None
        return self._connection

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"ledger sqlite:{self.path}: {error}; free the disk, or name a file that can be written"
        )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@cache
def _insertion(table: str, num_rows: int) -> str:
    columns = COLUMNS[table]
    places = f"({', '.join('?' * len(columns))})"
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([places] * num_rows)} "
        f"ON CONFLICT ({KEYS[table]}) DO NOTHING"
    )
