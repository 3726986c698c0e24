"""Whether a ledger can be opened and written, found out without making or changing one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from crossroads.core.errors import UnavailableError
from crossroads.gateway.ledger.schema import SQLITE_WORDS, migrations
from crossroads.gateway.ledger.settings import LedgerSettings
from crossroads.gateway.ledger.sqlite import SqliteStore
from crossroads.gateway.ledger.store import Store, newer_schema
from crossroads.gateway.ledger.urls import check_url, is_postgres, sqlite_path


def check_ledger(settings: LedgerSettings) -> None:
    """Try the ledger, as ``crossroads check-config --probe`` does; nothing is left behind.

    Raises InputError, UnavailableError or MissingExtraError with the reason it would not work.
    """
    store: Store
    if is_postgres(check_url(settings.url)):
        store = _postgres(settings)
    else:
        path = sqlite_path(settings.url)
        is_there = path.is_file() and path.stat().st_size > 0
        _check_writable(path, path if path.is_file() else _nearest(path.parent))
        if not is_there:
            return  # the server makes it
        store = _SqliteTrial(path, timeout_s=settings.timeout_s, is_reader=True)
    try:
        store.open()
    finally:
        store.close()


class _SqliteTrial(SqliteStore):
    """Leaves an older schema as it is."""

    def _migrate(self, connection: Any) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        known = len(migrations(SQLITE_WORDS))
        if version > known:
            raise newer_schema(f"sqlite:{self.path}", version, known)


def _postgres(settings: LedgerSettings) -> Store:
    from crossroads.gateway.ledger.postgres import PostgresStore

    class Trial(PostgresStore):
        """Makes the tables, as a server would, in a transaction that is rolled back."""

        async def _migrate(self, connection: Any) -> None:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await super()._migrate(connection)
            finally:
                await transaction.rollback()

    return Trial(settings.url, timeout_s=settings.timeout_s)


def _check_writable(path: Path, place: Path) -> None:
    """Refuse a file, or the folder that a new one would be made in, that cannot be written."""
    needed = os.W_OK | os.X_OK if place.is_dir() else os.W_OK
    if place.is_file() and place != path:
        problem = f"{place} is a file and no folder"
    elif not os.access(place, needed):
        problem = f"{place} cannot be written"
    else:
        return
    raise UnavailableError(f"ledger sqlite:{path}: {problem}; name a file that can be written")


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
