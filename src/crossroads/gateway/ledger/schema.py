"""The tables of the ledger, in both databases, and how records become rows and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Literal

import orjson

from crossroads.gateway.contracts import Record

Kind = Literal["text", "real", "integer", "boolean", "json", "blob"]
Row = tuple[Any, ...]

CALLS = "calls"
FEEDBACK = "feedback"

_FACTS = "facts"
# What is searched, summed or looked at often has a column of its own; the rest is one JSON object,
# because every further column costs a row a tenth of a microsecond or two. Facts that are false,
# empty or absent are left out of it: their default is that.
_PLAIN = (
    *("decision_id", "time", "key_id", "team", "session", "policy", "chosen", "model", "status"),
    *("error", "cache", "is_complete", "propensity", "features_hash", "input_tokens"),
    *("output_tokens", "cost_usd", "saved_usd", "queue_ms", "route_ms", "connect_ms"),
    *("upstream_ms", "relay_ms", "total_ms", "first_token_ms", "confidence", "predicted_quality"),
    *("predicted_cost_usd", "prompt", "answer", "features"),
)
_BY_MODEL = ("scores", "costs")
_REST = tuple(f.name for f in fields(Record) if f.name not in (*_PLAIN, *_BY_MODEL))
KIND_OF: dict[str, Kind] = {
    **dict.fromkeys((*_BY_MODEL, _FACTS), "json"),
    **dict.fromkeys(("status", "input_tokens", "output_tokens"), "integer"),
    **dict.fromkeys(
        (
            *("time", "propensity", "cost_usd", "saved_usd", "queue_ms", "route_ms", "connect_ms"),
            *("upstream_ms", "relay_ms", "total_ms", "first_token_ms", "confidence"),
            *("predicted_quality", "predicted_cost_usd"),
        ),
        "real",
    ),
    "is_complete": "boolean",
    "features": "blob",
}
CALL_COLUMNS = (*_PLAIN, *_BY_MODEL, _FACTS)
FEEDBACK_COLUMNS = (
    *("feedback_id", "decision_id", "time", "source", "score"),
    *("preference", "other", "comment", "key_id"),
)
COLUMNS = {CALLS: CALL_COLUMNS, FEEDBACK: FEEDBACK_COLUMNS}
KEYS = {CALLS: "decision_id", FEEDBACK: "feedback_id"}

_MOST_INTEGER = 2**63 - 1
_DEFAULTS = {f.name: f.default for f in fields(Record)}
_plain_values = attrgetter(*_PLAIN)
_rest_values = attrgetter(*_REST)
_SECRET = {"text": "prompt", "answers": "answer", "features": "features"}


def encoder(keep: Iterable[str]) -> Callable[[Record], Row]:
    """Return what turns a record into a row of ``CALL_COLUMNS``, dropping what is not kept.

    It raises TypeError for a record that JSON cannot hold.
    """
    kept = frozenset(keep)
    dropped = tuple(_PLAIN.index(name) for key, name in _SECRET.items() if key not in kept)
    last: tuple[Any, str | None] = (None, None)  # costs, and how they are written

    def encode(record: Record) -> Row:
        nonlocal last
        values = list(_plain_values(record))
        for place in dropped:
            values[place] = None
        scores, costs = record.scores, record.costs
        values.append(_json(scores) if scores else None)
        # Read once and written once: encoders are shared by threads, and a pair is never half new.
        known = last
        if costs is not known[0]:  # a policy's expected costs are one object for all its calls
            known = last = (costs, _json(costs) if costs else None)
        values.append(known[1])
        facts = {name: v for name, v in zip(_REST, _rest_values(record), strict=True) if v}
        values.append(_json(facts))
        return tuple(values)

    return encode


def decode(row: Sequence[Any]) -> Record:
    """Return the record of a row of ``CALL_COLUMNS``; what a row lacks has its default."""
    values: dict[str, Any] = {}
    for name, value in zip(CALL_COLUMNS[:-1], row, strict=False):
        if name in _BY_MODEL:
            values[name] = orjson.loads(value) if value else {}
        else:
            values[name] = _DEFAULTS[name] if value is None else value
    values["is_complete"] = bool(values["is_complete"])
    values["request_id"] = ""
    facts = orjson.loads(row[-1]) if row[-1] else {}
    values |= {name: value for name, value in facts.items() if name in _DEFAULTS}
    values["attempts"] = [tuple(attempt) for attempt in values.get("attempts", ())]
    return Record(**values)


def cleaned(value: Any) -> Any:
    """Return a value that every database and JSON can hold: no NUL, no half character, 64 bits."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-_MOST_INTEGER - 1, min(value, _MOST_INTEGER))
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(each) for each in value]
    return value


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # half a character, or a number beyond 64 bits
        return orjson.dumps(cleaned(value)).decode()


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
