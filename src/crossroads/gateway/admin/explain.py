"""Says in plain data why a call went where it went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from crossroads.gateway.admin.shapes import shown_quality
from crossroads.gateway.contracts import Record

_PHASES = ("queue", "route", "connect", "upstream", "relay")
_NAMES = tuple(f.name for f in fields(Record) if f.name != "features")


def to_fields(row: Mapping[str, Any] | Record) -> dict[str, Any]:
    """Return a ledger row as plain data that JSON can hold; the embedding is left out."""
    if isinstance(row, Record):
        found = {name: getattr(row, name) for name in _NAMES}
    else:
        found = {name: value for name, value in row.items() if name != "features"}
    return {name: _plain(value) for name, value in found.items()}


def explain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``summary`` (sentences), ``scores`` (best first), ``attempts``, ``phases``, ``row``.

    ``row`` is as `to_fields` gives it.
    """
    scores = row.get("scores") or {}
    costs, odds = row.get("costs") or {}, row.get("probabilities") or {}
    names = sorted({*scores, *odds}, key=lambda name: (-(scores.get(name) or 0.0), name))
    return {
        "summary": _summary(row),
        "scores": [
            {
                "model": name,
                "quality": shown_quality(scores.get(name)),
                "cost_usd": costs.get(name),
                "probability": odds.get(name),
                "is_chosen": name == row.get("chosen"),
                "is_answering": name == row.get("model"),
            }
            for name in names
        ],
        "attempts": [_attempt(attempt) for attempt in row.get("attempts") or ()],
        "phases": [{"phase": phase, "ms": row.get(f"{phase}_ms") or 0.0} for phase in _PHASES],
        "row": dict(row),
    }


def _summary(row: Mapping[str, Any]) -> list[str]:
    asked, chosen, model = (str(row.get(name) or "") for name in ("asked", "chosen", "model"))
    said = []
    if chosen:
        reason = str(row.get("reason") or "").rstrip(".")
        said.append(f"Asked for {asked}; {row.get('policy') or 'the gateway'} chose {chosen}")
        said[0] += f": {reason}." if reason else "."
    if row.get("is_explored"):
        said.append(f"Chance chose it, with probability {row.get('propensity', 1.0):.3g}.")
    if row.get("cache"):
        said.append(f"The answer came from the {row['cache']} cache.")
    elif model and model != chosen:
        said.append(f"{model} answered in its place.")
    verdict = row.get("verdict") or {}
    if verdict.get("reason"):
        word = "accepted" if verdict.get("accepted") else "refused"
        said.append(f"The verifier {word} the first answer: {str(verdict['reason']).rstrip('.')}.")
    degraded = (row.get("labels") or {}).get("degraded")
    if degraded:
        said.append(f"Degraded: {degraded}.")
    status = row.get("status")
    if status != 200:
        said.append(f"It failed with status {status}: {row.get('error') or 'no reason given'}.")
    elif not row.get("is_complete"):
        said.append("The answer did not get through whole.")
    return said


def _attempt(attempt: Any) -> dict[str, Any]:
    if isinstance(attempt, Mapping):
        return dict(attempt)
    model, status, code, seconds = attempt
    return {"model": model, "status": status, "code": code, "seconds": seconds}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
