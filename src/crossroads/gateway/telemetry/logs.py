"""Structured logs: one JSON object a line, written by a thread.

A call's line has what its ledger row has but never the prompt, the answer or a header. Whatever
text is written has things that look like keys blotted out, and the secrets it was told of.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import orjson

from crossroads.core.errors import InputError
from crossroads.gateway.contracts import Record
from crossroads.gateway.telemetry.outbox import Outbox
from crossroads.gateway.telemetry.settings import LogSettings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# Without a handler they would write plain lines between the others on standard error.
_LOGGERS = ("crossroads", "asyncio", "opentelemetry", "uvicorn")
_BLOT = "[redacted]"
_REMEMBERED = 2_000  # texts found clean, or cleaned; most come again and again
_LIKE_A_KEY = re.compile(
    r"\b(?:sk|pk|rk|xai|gsk|hf|AIza|ghp|xox[bp])[-_][\w-]{6,}"
    r"|\b(?P<scheme>Bearer|Basic)\s+[\w.~+/=-]{4,}"
    r"|(?P<name>\b(?:x-)?api[-_]?key|authorization|password|secret|token)(?P<is>[\"']?\s*[:=]\s*)"
    r"(?:(?:Bearer|Basic)\s+)?[\"']?[^\s\"',;&}]{3,}"
    r"|(?P<url>\w+://[^\s:/@]*):[^\s@/]+@",
    re.IGNORECASE,
)


class Logs:
    """Writes lines for calls and for what the gateway's own loggers say.

    Raises InputError where the file cannot be appended to.

    Parameters
    ----------
    secrets : texts that never appear in a line, whatever they look like
    """

    def __init__(self, settings: LogSettings, *, secrets: Iterable[str] = ()) -> None:
        self._level = _LEVELS[settings.level]
        self._sample = settings.sample
        self._random = random.Random()
        self._secrets = sorted({s for s in secrets if len(s) >= 4}, key=len, reverse=True)
        self._clean_text = lru_cache(_REMEMBERED)(self._blot_out)
        self._path = None if settings.file is None else Path(settings.file)
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.open("ab").close()
            except OSError as error:
                raise InputError(
                    f"telemetry.logs.file: {self._path} cannot be written: {error.strerror}; "
                    "name another file"
                ) from error
        self.outbox: Outbox[Record | logging.LogRecord] = Outbox(
            "crossroads-logs", self._write, size=settings.queue, period=settings.flush_ms / 1e3
        )
        self._handler = _Handler(self.outbox, self._level)

    def put(self, record: Record) -> None:
        """Log a call, if its level and the sample have it."""
        if record.status == 200 and record.is_complete:
            if self._level > 20 or (self._sample < 1 and self._random.random() >= self._sample):
                return
        elif self._level > (40 if record.status >= 500 else 30):
            return
        self.outbox.put(record)

    def start(self) -> None:
        """Begin to write, the lines of our own loggers and of those that speak in our place too."""
        self.outbox.start()
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._handler)

    def close(self) -> None:
        """Write what is left."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._handler)
        self.outbox.close()

    def line(self, item: Record | logging.LogRecord) -> bytes:
        """Return one line, newline included."""
        if isinstance(item, Record):
            fields = call_fields(item)
            for name in _FREE:
                if name in fields:
                    fields[name] = self._clean(fields[name])
            if "request_id" in fields:
                fields["request_id"] = self._clean_id(fields["request_id"])
        else:
            fields = self._clean(_log_fields(item))
        try:
            return orjson.dumps(fields, default=str, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # half a character, or a number beyond 64 bits
            return json.dumps(fields, default=str).encode() + b"\n"

    def _write(self, batch: Sequence[Record | logging.LogRecord]) -> None:
        written = []
        for item in batch:
            try:
                written.append(self.line(item))
            except Exception:  # noqa: BLE001 - one that nobody foresaw takes no others with it
                self.outbox.num_dropped += 1
        lines = b"".join(written)
        if self._path is None:
            sys.stderr.buffer.write(lines)
            sys.stderr.buffer.flush()
            return
        with self._path.open("ab") as file:  # anew each time, so that it may be rotated away
            file.write(lines)

    def _clean_id(self, text: str) -> str:
        """Clean a request's id: ours, new for every line, look like nobody's key."""
        if _OUR_ID.fullmatch(text) is None:
            return self._clean_text(text)
        for secret in self._secrets:
            text = text.replace(secret, _BLOT)
        return text

    def _clean(self, value: Any) -> Any:
        kind = value.__class__
        if kind is str:
            return self._clean_text(value)
        if kind is float or kind is int:
            return value
        if isinstance(value, dict):  # as it is at one moment: labels may be added to meanwhile
            return {
                self._clean_text(str(key)): self._clean(item) for key, item in list(value.items())
            }
        if isinstance(value, list | tuple):
            return [self._clean(item) for item in value]
        return value

    def _blot_out(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _BLOT)
        return _LIKE_A_KEY.sub(_blot, text)


def call_fields(record: Record) -> dict[str, Any]:
    """Return what a call's line has; empty fields are left out."""
    failed = record.status != 200 or not record.is_complete
    severity = "error" if record.status >= 500 else "warning" if failed else "info"
    fields: dict[str, Any] = {
        "time": _iso(record.time),
        "level": severity,
        "event": "call",
        "status": record.status,
        "is_complete": record.is_complete,
    }
    for name, value in zip(_LOGGED, _values(record), strict=True):
        if value:
            fields[name] = round(value, 6) if value.__class__ is float else value
    return fields


_LOGGED = (
    *("decision_id", "request_id", "key_id", "team", "dialect", "asked", "policy", "version"),
    *("chosen", "model", "reason", "error", "is_stream", "finish", "attempts"),
    *("cache", "is_explored", "propensity", "confidence", "input_tokens", "output_tokens"),
    *("cost_usd", "saved_usd", "queue_ms", "route_ms", "connect_ms", "upstream_ms", "relay_ms"),
    *("total_ms", "first_token_ms", "labels"),
)
_values = attrgetter(*_LOGGED)
# What clients and upstreams can write into; the rest is ours, or of the configuration.
_FREE = ("asked", "reason", "error", "finish", "attempts", "labels")
_OUR_ID = re.compile(r"req_[0-9a-f]{32}")


def _log_fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {
        "time": _iso(record.created),
        "level": record.levelname.lower(),
        "event": "log",
        "logger": record.name,
        "message": _message(record),
    }
    if record.exc_info:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - whatever the arguments' own code may raise
        return f"{record.msg} (its arguments do not fit)"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _blot(found: re.Match[str]) -> str:
    if found["scheme"]:
        return f"{found['scheme']} {_BLOT}"
    if found["name"]:
        return f"{found['name']}{found['is']}{_BLOT}"
    return f"{found['url']}:{_BLOT}@" if found["url"] else _BLOT


class _Handler(logging.Handler):
    def __init__(self, outbox: Outbox[Record | logging.LogRecord], level: int) -> None:
        super().__init__(level)
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        self._outbox.put(record)
