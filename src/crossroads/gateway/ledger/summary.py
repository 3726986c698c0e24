"""Figures of a period: traffic and cost by model, policy and key, errors, latency, savings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from crossroads.gateway.ledger.schema import CALLS
from crossroads.gateway.ledger.store import Store

_MOST_LATENCIES = 100_000  # latest calls that percentiles are taken of
_MOST_SCORED = 10_000  # latest decisions that say which model is best, or what models cost
_PERCENTILES = (50, 90, 95, 99)
_GROUPS = 50  # largest groups listed

_FIGURES = (
    "COUNT(*), COALESCE(SUM(CASE WHEN status >= 400 THEN 1 ELSE 0 END), 0), "
    "COALESCE(SUM(CASE WHEN cache <> '' THEN 1 ELSE 0 END), 0), "
    "COALESCE(SUM(cost_usd), 0), COALESCE(SUM(saved_usd), 0), "
    "COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0)"
)
_NAMES = (
    *("calls", "errors", "cache_hits", "cost_usd", "cache_saved_usd"),
    *("input_tokens", "output_tokens"),
)
_SAVED = (
    *("best_model", "compared_calls", "best_model_cost_usd"),
    *("compared_cost_usd", "saved_usd"),
)
_WHOLE = frozenset(_NAMES) - {"cost_usd", "cache_saved_usd"}


def summarise_calls(
    store: Store, since: float | None, *, best_model: str | None = None
) -> dict[str, Any]:
    """Return plain data for a page or JSON.

    ``calls``, ``errors`` (status 400 and above), ``cache_hits``, ``cost_usd``,
    ``cache_saved_usd``, ``input_tokens`` and ``output_tokens``, and the same of the 50 largest
    groups in ``by_model``, ``by_policy`` and ``by_key``; ``by_error``: calls by error code.
    ``latency_ms`` has percentiles of total, upstream, route and first token over the latest
    100,000 calls.

    ``saved_usd`` compares with always asking ``best_model``, by the costs expected when each call
    was decided: of it (``best_model_cost_usd``) and of the model chosen (``compared_cost_usd``).
    Without one given it is the model with the highest mean estimate over the latest 10,000 scored
    decisions. Only the ``compared_calls`` whose decision knew both costs are counted; all are None
    where nothing was scored.
    """
    where, values = ("1 = 1", []) if since is None else ("time >= ?", [since])
    groups = {"by_model": "model", "by_policy": "policy", "by_key": "key_id"}
    return {
        "since": since,
        **_figures(store.fetch(f"SELECT {_FIGURES} FROM {CALLS} WHERE {where}", values)[0]),
        **{name: _grouped(store, column, where, values) for name, column in groups.items()},
        "by_error": _errors(store, where, values),
        "latency_ms": _latencies(store, where, values),
        **_saved(store, where, values, best_model),
    }


def _figures(row: Sequence[Any]) -> dict[str, Any]:
    pairs = zip(_NAMES, row, strict=True)
    return {name: int(value) if name in _WHOLE else float(value) for name, value in pairs}


def _grouped(
    store: Store, column: str, where: str, values: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    rows = store.fetch(
        f"SELECT {column}, {_FIGURES} FROM {CALLS} WHERE {where} "
        f"GROUP BY {column} ORDER BY COUNT(*) DESC, {column} LIMIT {_GROUPS}",
        values,
    )
    return {str(row[0] or ""): _figures(row[1:]) for row in rows}


def _errors(store: Store, where: str, values: Sequence[Any]) -> dict[str, int]:
    rows = store.fetch(
        f"SELECT error, COUNT(*) FROM {CALLS} WHERE {where} AND status >= 400 "
        f"GROUP BY error ORDER BY COUNT(*) DESC LIMIT {_GROUPS}",
        values,
    )
    return {str(name or ""): int(count) for name, count in rows}


def _latencies(store: Store, where: str, values: Sequence[Any]) -> dict[str, Any]:
    columns = ("total_ms", "upstream_ms", "route_ms", "first_token_ms")
    rows = store.fetch(
        f"SELECT {', '.join(columns)} FROM {CALLS} WHERE {where} "
        f"ORDER BY time DESC LIMIT {_MOST_LATENCIES}",
        values,
    )
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(columns))
    return {name: _percentiles(table[:, place]) for place, name in enumerate(columns)}


def _percentiles(value_N: Any) -> dict[str, float] | None:
    known = value_N[np.isfinite(value_N)]
    if len(known) == 0:
        return None
    found = np.percentile(known, _PERCENTILES)
    return {f"p{p}": float(value) for p, value in zip(_PERCENTILES, found, strict=True)}


def _saved(
    store: Store, where: str, values: Sequence[Any], best_model: str | None
) -> dict[str, Any]:
    best = best_model or _best_by_estimate(store, where, values)
    if best is None:
        return dict.fromkeys(_SAVED)
    expected = store.number_at("costs")
    calls, always, spent = store.fetch(
        "SELECT COUNT(always), COALESCE(SUM(always), 0), "
        "COALESCE(SUM(CASE WHEN always IS NULL THEN 0 ELSE chosen_usd END), 0) FROM "
        f"(SELECT {expected} AS always, predicted_cost_usd AS chosen_usd FROM {CALLS} "
        f"WHERE {where} AND costs IS NOT NULL AND predicted_cost_usd IS NOT NULL) AS decided",
        (best, *values),
    )[0]
    found = (best, int(calls), float(always), float(spent), float(always) - float(spent))
    return dict(zip(_SAVED, found, strict=True))


def models_with_costs(store: Store, since: float | None) -> list[str]:
    """Return the models whose cost one of the latest 10,000 decisions that knew any did know."""
    where, values = ("1 = 1", []) if since is None else ("time >= ?", [since])
    rows = store.fetch(
        f"SELECT DISTINCT each_number.key FROM (SELECT costs FROM {CALLS} WHERE {where} "
        f"AND costs IS NOT NULL ORDER BY time DESC LIMIT {_MOST_SCORED}) AS decided, "
        f"{store.each_number('decided.costs')} ORDER BY each_number.key",
        values,
    )
    return [str(row[0]) for row in rows]


def _best_by_estimate(store: Store, where: str, values: Sequence[Any]) -> str | None:
    rows = store.fetch(
        f"SELECT each_number.key, AVG(CAST(each_number.value AS DOUBLE PRECISION)) AS mean FROM "
        f"(SELECT scores FROM {CALLS} WHERE {where} AND scores IS NOT NULL "
        f"ORDER BY time DESC LIMIT {_MOST_SCORED}) AS scored, {store.each_number('scored.scores')} "
        "GROUP BY each_number.key ORDER BY mean DESC, each_number.key LIMIT 1",
        values,
    )
    return str(rows[0][0]) if rows else None
