"""A ledger in PostgreSQL, shared by the replicas on many machines."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Coroutine, Sequence
from functools import cache
from typing import Any, TypeVar

from crossroads.core.errors import InputError, MissingExtraError, UnavailableError
from crossroads.gateway.ledger.schema import COLUMNS, KEYS, POSTGRES_WORDS, Row, migrations
from crossroads.gateway.ledger.store import BadRowError, newer_schema, not_a_ledger
from crossroads.gateway.redaction import safe_url

Result = TypeVar("Result")

_MIGRATION_LOCK = 0x63726F7373  # any number, the same in every version
_PLACE = re.compile(r"\?")


class PostgresStore:
    """One connection, driven by an event loop of its own: never to be used on a running loop.

    Parameters
    ----------
    url : ``postgresql://...`` as PostgreSQL's clients understand it
    timeout_s : seconds for connecting and for every statement
    is_reader : never make a ledger where there is none
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0, is_reader: bool = False) -> None:
        try:
            import asyncpg  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingExtraError(
                "asyncpg (for a PostgreSQL ledger)", extra="postgres"
            ) from error
        self._asyncpg = asyncpg
        self.url = url
        self._timeout_s = timeout_s
        self._is_reader = is_reader
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Any = None

    def open(self) -> None:
        if self._connection is None:
            self._run(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self._asyncpg.connect(
                self.url,
                timeout=self._timeout_s,
                command_timeout=self._timeout_s,
                statement_cache_size=50,
                server_settings={"application_name": "crossroads ledger"},
            )
        except self._asyncpg.InterfaceError:
            raise
        except ValueError:  # quotes parts of the URL, which may be parts of the password
            raise InputError(
                f"ledger {safe_url(self.url)}: not a URL of PostgreSQL; correct it"
            ) from None
        try:
            await self._migrate(connection)
        except BaseException:
            await _terminate(connection)
            raise
        self._connection = connection

    async def _migrate(self, connection: Any) -> None:
        steps = migrations(POSTGRES_WORDS)
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            if await connection.fetchval("SELECT to_regclass('ledger_schema')") is None:
                taken = await connection.fetchval("SELECT to_regclass('calls')")
                if self._is_reader or taken is not None:
                    raise not_a_ledger(safe_url(self.url))
                await connection.execute("CREATE TABLE ledger_schema (version INTEGER NOT NULL)")
            version = await connection.fetchval("SELECT MAX(version) FROM ledger_schema") or 0
            if version > len(steps):
                raise newer_schema(safe_url(self.url), version, len(steps))
            for number, statements in enumerate(steps[version:], start=version + 1):
                for statement in statements:
                    await connection.execute(statement)
                await connection.execute("INSERT INTO ledger_schema VALUES ($1)", number)

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        self.open()
        self._run(self._connection.executemany(_insertion(table), rows))

    def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        self.open()
        found = self._run(self._connection.fetch(_numbered(sql), *parameters))
        return [tuple(row) for row in found]

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        self.open()
        status = self._run(self._connection.execute(_numbered(sql), *parameters))
        number = status.rpartition(" ")[2]  # "DELETE 7", but "DROP TABLE"
        return int(number) if number.isdigit() else 0

    def number_at(self, column: str) -> str:
        return f"CAST(CAST({column} AS jsonb) ->> ? AS DOUBLE PRECISION)"

    def each_number(self, column: str) -> str:
        return f"jsonb_each_text(CAST({column} AS jsonb)) AS each_number"

    def close(self) -> None:
        if self._loop is None:
            return
        connection, self._connection = self._connection, None
        if connection is not None:
            self._loop.run_until_complete(self._part(connection))
        self._loop.close()
        self._loop = None

    async def _part(self, connection: Any) -> None:
        try:
            await connection.close(timeout=self._timeout_s)
        except (self._asyncpg.PostgresError, self._asyncpg.InterfaceError, OSError, TimeoutError):
            await _terminate(connection)  # the server is gone already

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run work to its end. Raises BadRowError or UnavailableError in place of asyncpg's."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        try:
            return self._loop.run_until_complete(work)
        except (self._asyncpg.DataError, self._asyncpg.IntegrityConstraintViolationError) as error:
            raise BadRowError(str(error)) from error
        except UnicodeEncodeError as error:
            raise BadRowError(str(error)) from error
        except (
            self._asyncpg.PostgresError,
            self._asyncpg.InterfaceError,
            self._asyncpg.InternalClientError,
            OSError,
            TimeoutError,
        ) as error:
            self._drop()
            reason = str(error) or type(error).__name__
            raise UnavailableError(
                f"ledger {safe_url(self.url)}: {reason}; start PostgreSQL, or correct the URL"
            ) from error

    def _drop(self) -> None:
        if self._connection is not None and self._loop is not None:
            self._loop.run_until_complete(_terminate(self._connection))
            self._connection = None


async def _terminate(connection: Any) -> None:
    connection.terminate()
    await asyncio.sleep(0)  # the transport closes in the loop's next round


@cache
def _insertion(table: str) -> str:
    columns = COLUMNS[table]
    places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}) "
        f"ON CONFLICT ({KEYS[table]}) DO NOTHING"
    )


@cache
def _numbered(sql: str) -> str:
    numbers = itertools.count(1)
    return _PLACE.sub(lambda _: f"${next(numbers)}", sql)
