"""The tables of the ledger, in both databases, and how records become rows and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Literal

import orjson

from crossroads.gateway.contracts import Record

Kind = Literal["text", "real", "integer", "boolean", "json", "blob"]
Row = tuple[Any, ...]

CALLS = "calls"
FEEDBACK = "feedback"

_JSON = frozenset({"attempts", "probabilities", "scores", "costs", "labels", "verdict"})
KIND_OF: dict[str, Kind] = {
    **dict.fromkeys(_JSON, "json"),
    **dict.fromkeys(("is_stream", "is_complete", "is_explored", "is_usage_estimated"), "boolean"),
    **dict.fromkeys(("status", "input_tokens", "output_tokens"), "integer"),
    **dict.fromkeys(
        (
            *("time", "propensity", "confidence", "predicted_quality", "predicted_cost_usd"),
            *("cost_usd", "saved_usd", "queue_ms", "route_ms", "connect_ms", "upstream_ms"),
            *("relay_ms", "total_ms", "first_token_ms"),
        ),
        "real",
    ),
    "features": "blob",
}
# JSON columns last: the others are read off a record by one call.
_PLAIN = tuple(f.name for f in fields(Record) if f.name not in _JSON)
CALL_COLUMNS = (*_PLAIN, *sorted(_JSON))
FEEDBACK_COLUMNS = (
    *("feedback_id", "decision_id", "time", "source", "score"),
    *("preference", "other", "comment", "key_id"),
)
COLUMNS = {CALLS: CALL_COLUMNS, FEEDBACK: FEEDBACK_COLUMNS}
KEYS = {CALLS: "decision_id", FEEDBACK: "feedback_id"}

_DEFAULTS = {f.name: f.default for f in fields(Record)}
_plain_values = attrgetter(*_PLAIN)
_json_values = attrgetter(*sorted(_JSON))
_SECRET = {"text": "prompt", "answers": "answer", "features": "features"}


def encoder(keep: Iterable[str]) -> Callable[[Record], Row]:
    """Return what turns a record into a row of ``CALL_COLUMNS``, dropping what is not kept."""
    kept = frozenset(keep)
    dropped = tuple(_PLAIN.index(name) for key, name in _SECRET.items() if key not in kept)

    def encode(record: Record) -> Row:
        values = list(_plain_values(record))
        for place in dropped:
            values[place] = None
        for value in _json_values(record):
            values.append(orjson.dumps(value).decode() if value else None)
        return tuple(values)

    return encode


def decode(row: Sequence[Any]) -> Record:
    """Return the record of a row of ``CALL_COLUMNS``."""
    values: dict[str, Any] = {}
    for name, value in zip(CALL_COLUMNS, row, strict=True):
        if name in _JSON:
            values[name] = _from_json(name, value)
        elif value is None:
            values[name] = _DEFAULTS[name]
        elif KIND_OF.get(name) == "boolean":
            values[name] = bool(value)
        else:
            values[name] = value
    return Record(**values)


def _from_json(name: str, text: str | None) -> Any:
    if name == "attempts":
        return [tuple(attempt) for attempt in orjson.loads(text)] if text else []
    if name == "verdict":
        return orjson.loads(text) if text else None
    return orjson.loads(text) if text else {}


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Words:
    """What a database calls its types."""

    kinds: dict[Kind, str]
    serial: str


SQLITE_WORDS = Words(
    {
        **{"text": "TEXT", "real": "REAL", "integer": "INTEGER"},
        **{"boolean": "INTEGER", "json": "TEXT", "blob": "BLOB"},
    },
    "INTEGER PRIMARY KEY",
)
POSTGRES_WORDS = Words(
    {
        **{"text": "TEXT", "real": "DOUBLE PRECISION", "integer": "BIGINT"},
        **{"boolean": "BOOLEAN", "json": "TEXT", "blob": "BYTEA"},
    },
    "BIGSERIAL PRIMARY KEY",
)


def migrations(words: Words) -> tuple[tuple[str, ...], ...]:
    """Return the statements of each version of the schema; the first entry makes version 1.

    A version that was released never changes: a new column is a new entry.
    """
    return (
        (
            _create(CALLS, CALL_COLUMNS, words),
            "CREATE UNIQUE INDEX calls_by_decision ON calls (decision_id)",
            "CREATE INDEX calls_by_time ON calls (time)",
            "CREATE INDEX calls_by_key ON calls (key_id, time)",
        ),
        (
            _create(FEEDBACK, FEEDBACK_COLUMNS, words),
            "CREATE UNIQUE INDEX feedback_by_id ON feedback (feedback_id)",
            "CREATE INDEX feedback_by_decision ON feedback (decision_id)",
            "CREATE INDEX feedback_by_time ON feedback (time)",
        ),
    )


def _create(table: str, columns: Sequence[str], words: Words) -> str:
    kinds = {**KIND_OF, "score": "real"}
    parts = [f"{name} {words.kinds[kinds.get(name, 'text')]}" for name in columns]
    parts = [f"{part} NOT NULL" if part.split()[0] == KEYS[table] else part for part in parts]
    return f"CREATE TABLE {table} (id {words.serial}, {', '.join(parts)})"
