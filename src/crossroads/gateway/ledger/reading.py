"""Reading a ledger: recent calls, one call, figures of a period, everything for export."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from crossroads.gateway.contracts import Record
from crossroads.gateway.ledger.feedback import Feedback
from crossroads.gateway.ledger.pruning import prune_some
from crossroads.gateway.ledger.schema import (
    CALL_COLUMNS,
    CALLS,
    FEEDBACK,
    FEEDBACK_COLUMNS,
    Row,
    decode,
)
from crossroads.gateway.ledger.store import Store, build_store
from crossroads.gateway.ledger.summary import models_with_costs, summarise_calls

_PAGE = 1_000  # rows read at once
_TIMEOUT_S = 60.0  # of a query: sums over a long period take their time


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which calls; what is None or "" does not matter.

    Attributes
    ----------
    since, until : Unix seconds, the first included, the last not
    model, policy, key_id, team, session : as recorded
    is_error : only calls that failed (status 400 and above), or only the others
    """

    since: float | None = None
    until: float | None = None
    model: str = ""
    policy: str = ""
    key_id: str = ""
    team: str = ""
    session: str = ""
    is_error: bool | None = None

    def where(self) -> tuple[str, list[Any]]:
        """Return the SQL condition and its parameters."""
        parts, values = ["1 = 1"], []
        for name in ("model", "policy", "key_id", "team", "session"):
            if value := getattr(self, name):
                parts.append(f"{name} = ?")
                values.append(value)
        if self.since is not None:
            parts.append("time >= ?")
            values.append(self.since)
        if self.until is not None:
            parts.append("time < ?")
            values.append(self.until)
        if self.is_error is not None:
            parts.append("status >= 400" if self.is_error else "status < 400")
        return " AND ".join(parts), values


@dataclass(frozen=True, slots=True)
class Entry:
    """A call and every judgement of it, the oldest first."""

    record: Record
    feedback: tuple[Feedback, ...]


class LedgerReader:
    """Reads a ledger on a connection of its own, one thread at a time. Use it off the event loop.

    Every method raises UnavailableError where the database cannot be reached.

    Parameters
    ----------
    url : of the ledger
    store : in place of the one the URL names, for tests
    """

    def __init__(self, url: str, *, store: Store | None = None) -> None:
        self.url = url
        self._store = store or build_store(url, timeout_s=_TIMEOUT_S, is_reader=True)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recent(self, n: int = 100, filters: Filters | None = None) -> list[Record]:
        """Return the latest calls, the newest first."""
        where, values = (filters or Filters()).where()
        columns = ", ".join(CALL_COLUMNS)
        sql = f"SELECT {columns} FROM {CALLS} WHERE {where} ORDER BY time DESC, id DESC LIMIT ?"
        return [decode(row) for row in self._fetch(sql, (*values, n))]

    def judged(self, n: int, since: float) -> list[Record]:
        """Return the latest calls since then (Unix seconds) that have feedback, newest first."""
        columns = ", ".join(CALL_COLUMNS)
        sql = (
            f"SELECT {columns} FROM {CALLS} WHERE time >= ? AND decision_id IN "
            f"(SELECT decision_id FROM {FEEDBACK} WHERE time >= ?) ORDER BY time DESC LIMIT ?"
        )
        return [decode(row) for row in self._fetch(sql, (since, since, n))]

    def get(self, decision_id: str) -> Entry | None:
        """Return one call, None where there is no such decision."""
        columns = ", ".join(CALL_COLUMNS)
        rows = self._fetch(f"SELECT {columns} FROM {CALLS} WHERE decision_id = ?", (decision_id,))
        if not rows:
            return None
        judged = self._fetch(
            f"SELECT {', '.join(FEEDBACK_COLUMNS)} FROM {FEEDBACK} WHERE decision_id = ? "
            "ORDER BY time, id",
            (decision_id,),
        )
        return Entry(decode(rows[0]), tuple(Feedback.from_row(row) for row in judged))

    def key_of(self, decision_id: str) -> str | None:
        """Return the key a decision was made for, None where there is no such decision."""
        rows = self._fetch(f"SELECT key_id FROM {CALLS} WHERE decision_id = ?", (decision_id,))
        return None if not rows else str(rows[0][0] or "")

    def records(self, filters: Filters | None = None) -> Iterator[Record]:
        """Yield calls in the order they were written."""
        where, values = (filters or Filters()).where()
        for row in self._pages(CALLS, CALL_COLUMNS, where, values):
            yield decode(row)

    def feedback(self, since: float | None = None) -> Iterator[Feedback]:
        """Yield judgements in the order they were written."""
        where, values = ("1 = 1", []) if since is None else ("time >= ?", [since])
        for row in self._pages(FEEDBACK, FEEDBACK_COLUMNS, where, values):
            yield Feedback.from_row(row)

    def summary(
        self, since: float | None = None, *, best_model: str | None = None
    ) -> dict[str, Any]:
        """Return plain data: traffic, cost, errors, latency, savings. See ``summarise_calls``."""
        with self._lock:
            return summarise_calls(self._store, since, best_model=best_model)

    def models_with_costs(self, since: float | None = None) -> list[str]:
        """Return the models that savings can be told against: their costs were known."""
        with self._lock:
            self._store.open()
            return models_with_costs(self._store, since)

    def prune(self, before: float) -> int:
        """Delete all rows older than ``before`` (Unix seconds) and return how many."""
        total = 0
        while True:
            with self._lock:
                gone = prune_some(self._store, before)
            total += gone
            if gone == 0:
                return total

    def add_feedback(self, feedback: Sequence[Feedback]) -> None:
        """Write judgements at once, for tools; a server uses ``SqlLedger.append_feedback``."""
        with self._lock:
            self._store.insert(FEEDBACK, [each.row() for each in feedback])

    def close(self) -> None:
        with self._lock:
            self._store.close()

    def _pages(
        self, table: str, columns: Sequence[str], where: str, values: Sequence[Any]
    ) -> Iterator[Row]:
        last = -1
        sql = (
            f"SELECT id, {', '.join(columns)} FROM {table} WHERE {where} AND id > ? "
            f"ORDER BY id LIMIT {_PAGE}"
        )
        while rows := self._fetch(sql, (*values, last)):
            last = rows[-1][0]
            for row in rows:
                yield row[1:]

    def _fetch(self, sql: str, values: Sequence[Any]) -> list[Row]:
        with self._lock:
            self._store.open()
            return self._store.fetch(sql, values)
