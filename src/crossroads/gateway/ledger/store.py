"""What the ledger needs of a database, and the choice between the two it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from crossroads.core.errors import InputError
from crossroads.gateway.ledger.schema import Row
from crossroads.gateway.ledger.urls import check_url, is_postgres, sqlite_path
from crossroads.gateway.redaction import safe_url


class BadRowError(ValueError):
    """A row that the database will never take, whatever is done to it."""


class Store(Protocol):
    """One connection, used by one thread at a time.

    Every method raises UnavailableError where the database cannot be reached or cannot write; the
    connection is then closed and ``open`` may be tried again.
    """

    def open(self) -> None:
        """Connect, and bring the schema to this version. Raises InputError for a newer one."""
        ...

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        """Add rows in one transaction, leaving out those whose key is there already.

        Raises BadRowError, having added none, where a row cannot be stored.
        """
        ...

    def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query; placeholders are ``?``."""
        ...

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement in a transaction of its own and return the number of rows changed."""
        ...

    def number_at(self, column: str) -> str:
        """Return SQL for the number that a JSON column holds under the key in a placeholder."""
        ...

    def each_number(self, column: str) -> str:
        """Return SQL of a table ``each_number(key, value)`` of a JSON column's numbers."""
        ...

    def close(self) -> None: ...


def build_store(url: str, *, timeout_s: float = 5.0, is_reader: bool = False) -> Store:
    """Return the store of a ledger's URL, not yet open.

    A reader refuses to make a ledger where there is none. Raises InputError for an unknown kind of
    URL, MissingExtraError for PostgreSQL without asyncpg.
    """
    check_url(url)
    if is_postgres(url):
        from crossroads.gateway.ledger.postgres import PostgresStore

        return PostgresStore(url, timeout_s=timeout_s, is_reader=is_reader)
    from crossroads.gateway.ledger.sqlite import SqliteStore

    path = sqlite_path(url)
    if is_reader and not path.is_file():
        raise InputError(f"ledger {safe_url(url)!r}: no such file; give the URL the server writes")
    return SqliteStore(path, timeout_s=timeout_s, is_reader=is_reader)


def newer_schema(where: str, found: int, known: int) -> InputError:
    return InputError(
        f"ledger {where}: its schema is version {found}, this crossroads knows {known}; "
        "upgrade crossroads, or name another ledger"
    )


def not_a_ledger(where: str) -> InputError:
    return InputError(f"ledger {where}: not a ledger; give the URL the server writes, or a new one")
