"""The ledger as the gateway sees it: appending is instant, a thread does the rest.

A row waits in memory for at most ``flush_ms``, then it is committed. Where the database cannot take
it, it goes to a journal on the disk, which is replayed when the database is back; where the disk
refuses too, it waits in memory, and only when ``queue`` rows wait are further ones lost, and
counted. Nothing here makes a request wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import closing
from typing import Any

from crossroads.core.errors import InputError, UnavailableError
from crossroads.gateway.contracts import Record
from crossroads.gateway.ledger.feedback import Feedback
from crossroads.gateway.ledger.journal import Journal
from crossroads.gateway.ledger.pruning import prune_some
from crossroads.gateway.ledger.schema import CALLS, FEEDBACK, Row, cleaned, encoder
from crossroads.gateway.ledger.settings import LedgerSettings
from crossroads.gateway.ledger.store import BadRowError, Store, build_store
from crossroads.gateway.ledger.urls import default_journal, is_postgres
from crossroads.gateway.redaction import safe_url

_log = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 0.2, 5.0
_PRUNE_EVERY_S = 600.0
_WATCH_EVERY_S = 0.1
_ROWS_A_TURN = 50
_DAY_S = 86_400.0


class SqlLedger:
    """Keeps records in SQLite or PostgreSQL. Build it with ``open_ledger``.

    Parameters
    ----------
    settings : where, how often, what is kept
    store : not yet open; used by the ledger's own thread only
    """

    def __init__(self, settings: LedgerSettings, store: Store) -> None:
        self.settings = settings
        self._store = store
        self._encode = encoder(settings.keep)
        self._queue: deque[Record | Feedback] = deque()
        self._most = settings.queue
        self._journal = _journal(settings)
        self._wake = threading.Event()
        self._is_closing = self._is_closed = False
        self._is_busy = False
        self._retry_at, self._retry_s = 0.0, _FIRST_RETRY_S
        self._prune_at = 0.0
        self._error: str | None = None
        self._journal_error: str | None = None
        self._has_adopted = False
        self._stuck: list[tuple[str, list[Row]]] = []  # of the first thread
        self._aside: list[tuple[str, list[Row]]] = []  # of the second
        self._stopped = threading.Event()
        self._written = self._lost = self._rejected = self._spilled = self._replayed = 0
        self._committed_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._guard = threading.Thread(target=self._watch, name="ledger-overflow", daemon=True)

    def start(self) -> None:
        """Start the threads. Raises InputError where an SQLite file cannot be used at all.

        A PostgreSQL that cannot be reached yet is waited for: rows go to the journal until then.
        """
        try:
            self._store.open()
        except UnavailableError as error:
            if not is_postgres(self.settings.url):
                raise InputError(str(error)) from error
            self._fail(error)
        except BaseException:
            self._store.close()
            raise
        self._thread.start()
        self._guard.start()

    def append(self, record: Record) -> None:
        """Remember a call, soon. Never waits and never raises."""
        if len(self._queue) >= self._most:
            self._lost += 1
            return
        self._queue.append(record)

    def append_feedback(self, feedback: Feedback) -> None:
        """Remember a judgement, soon. Never waits and never raises."""
        if len(self._queue) >= self._most:
            self._lost += 1
            return
        self._queue.append(feedback)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything appended so far is committed or journalled; False after the time.

        For tests, tools and feedback that follows its call closely; blocks the calling thread.
        """
        deadline = time.monotonic() + timeout_s
        while self._queue or self._stuck or self._aside or self._is_busy:
            if time.monotonic() > deadline or not self._thread.is_alive():
                return False
            self._wake.set()
            time.sleep(0.002)
        return True

    def health(self) -> dict[str, Any]:
        """Return plain data: how rows fare, and what is wrong.

        ``state`` is ``ok`` or ``degraded``; counts are of this process since it started:
        ``written`` rows committed, ``spilled`` to the journal and ``replayed`` from one,
        ``journalled`` waiting there now, ``queued`` in memory, ``lost`` to a full queue, or at the
        end because neither took them, ``rejected`` because no database could store them.
        ``damaged_journals`` were put aside.
        """
        is_ok = self._error is None and self._journal.num_rows == 0
        return {
            "state": "ok" if is_ok else "degraded",
            "url": safe_url(self.settings.url),
            "error": self._error,
            "journal_error": self._journal_error,
            "queued": len(self._queue),
            "written": self._written,
            "spilled": self._spilled,
            "replayed": self._replayed,
            "journalled": self._journal.num_rows,
            "lost": self._lost,
            "rejected": self._rejected,
            "committed_at": self._committed_at,
            "journal": str(self._journal.path),
            "damaged_journals": list(self._journal.damaged),
            "flush_ms": self.settings.flush_ms,
        }

    def close(self, timeout_s: float = 10.0) -> None:
        """Commit what waits, or journal it, and stop. Safe to repeat.

        What a database that hangs does not take within ``timeout_s`` goes to the journal, for the
        next process; what that does not take either is counted as lost.
        """
        if self._is_closed:
            return
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._stopped.set()
        if self._guard.is_alive():
            self._guard.join(timeout_s)
        self._put_off()
        self._journal.close()
        self._is_closed = True

    def _put_off(self) -> None:
        """Journal what no thread got rid of, also what one still waits for the database with."""
        waiting = [*self._stuck, *self._aside]
        while self._queue:
            waiting += self._next_rows()
        num_lost = sum(len(rows) for table, rows in waiting if not self._spill(table, rows))
        self._lost += num_lost
        if num_lost:
            _log.error("ledger %s: %d rows are lost", safe_url(self.settings.url), num_lost)

    # --- the ledger's own thread -----------------------------------------------------------------

    def _run(self) -> None:
        wait_s = self.settings.flush_ms / 1000
        while not self._is_closing:
            self._wake.wait(wait_s)
            self._wake.clear()
            self._pass()
        self._pass()
        self._store.close()

    def _pass(self) -> None:
        self._is_busy = True
        try:
            if self._needs_replay and time.monotonic() >= self._retry_at:
                self._replay()
            self._drain()
            if self._error is None and time.monotonic() >= self._prune_at:
                self._prune()
        except UnavailableError as error:
            self._fail(error)
            self._drain()
        except Exception as error:  # noqa: BLE001 - the thread lives: the next pass tries again
            self._fail(error)
        finally:
            self._is_busy = False

    @property
    def _needs_replay(self) -> bool:
        return self._error is not None or self._journal.num_rows > 0 or not self._has_adopted

    def _replay(self) -> None:
        """Commit what journals hold, this process's own and those of dead ones."""
        self._store.open()
        try:
            for entries in (self._journal.take(), self._journal.adopt()):
                with closing(entries):
                    for table, rows in entries:
                        self._replayed += self._commit(table, rows)
            self._journal_error, self._has_adopted = None, True
        except InputError as error:  # no fault of the database: it is written to
            self._journal_error = str(error)
        if self._error is not None:
            _log.warning("ledger %s: back", safe_url(self.settings.url))
        self._error, self._retry_s = None, _FIRST_RETRY_S

    def _drain(self) -> None:
        """Commit or journal all that waits; what neither takes stays in memory."""
        while self._stuck or self._queue:
            if not self._stuck:
                self._stuck = self._next_rows()
            while self._stuck:
                if not self._keep(*self._stuck[0]):
                    return
                del self._stuck[0]

    def _next_rows(self) -> list[tuple[str, list[Row]]]:
        calls: list[Row] = []
        feedback: list[Row] = []
        for number in range(self.settings.batch):
            if number % _ROWS_A_TURN == 0:
                time.sleep(0)  # let the event loop's thread have the interpreter
            try:
                item = self._queue.popleft()
            except IndexError:
                break
            try:
                if isinstance(item, Feedback):
                    feedback.append(item.row())
                else:
                    calls.append(self._encode(item))
            except (TypeError, ValueError) as error:  # cannot be written as JSON
                self._reject(error)
        return [(table, rows) for table, rows in ((CALLS, calls), (FEEDBACK, feedback)) if rows]

    def _keep(self, table: str, rows: list[Row]) -> bool:
        """Commit rows, else journal them; False where both failed."""
        if self._error is None:
            try:
                self._written += self._commit(table, rows)
                return True
            except UnavailableError as error:
                self._fail(error)
        return self._spill(table, rows)

    def _commit(self, table: str, rows: list[Row]) -> int:
        """Commit rows, one by one where one of them spoils the batch; return how many went in."""
        try:
            self._store.insert(table, rows)
            num_kept = len(rows)
        except BadRowError as error:
            if len(rows) > 1:
                return sum(self._commit(table, [row]) for row in rows)
            clean = tuple(cleaned(value) for value in rows[0])
            if clean != rows[0]:
                return self._commit(table, [clean])
            self._reject(error)
            return 0
        self._committed_at = time.time()
        return num_kept

    def _spill(self, table: str, rows: list[Row]) -> bool:
        try:
            self._journal.append(table, [tuple(cleaned(value) for value in row) for row in rows])
        except InputError as error:
            self._journal_error = str(error)
            return False
        self._journal_error = None
        self._spilled += len(rows)
        return True

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            _log.error("ledger %s: %s", safe_url(self.settings.url), error)
        self._error = str(error)
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    def _reject(self, error: Exception) -> None:
        self._rejected += 1
        _log.error("ledger %s: a row cannot be stored: %s", safe_url(self.settings.url), error)

    def _prune(self) -> None:
        if self.settings.retention_days is None:
            self._prune_at = float("inf")
            return
        before = time.time() - _DAY_S * self.settings.retention_days
        if prune_some(self._store, before) == 0:
            self._prune_at = time.monotonic() + _PRUNE_EVERY_S

    # --- the second thread -----------------------------------------------------------------------

    def _watch(self) -> None:
        """Journal rows while the database holds the first thread up and the queue fills."""
        while not self._stopped.wait(_WATCH_EVERY_S):
            while self._aside or len(self._queue) > self._most * 3 // 4:
                if not self._aside:
                    self._aside = self._next_rows()
                if self._aside:
                    if not self._spill(*self._aside[0]):
                        break  # they wait; what the queue cannot hold is lost there, and counted
                    del self._aside[0]


def open_ledger(settings: LedgerSettings) -> SqlLedger:
    """Return the ledger of these settings, started.

    Raises InputError where an SQLite file cannot be used or its schema is newer than this version,
    MissingExtraError for PostgreSQL without asyncpg.
    """
    ledger = SqlLedger(settings, build_store(settings.url, timeout_s=settings.timeout_s))
    ledger.start()
    return ledger


def _journal(settings: LedgerSettings) -> Journal:
    folder, prefix = default_journal(settings.url)
    return Journal(settings.journal or folder, prefix)
