"""The figures of a ledger, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from crossroads.cli.words import counted

_GROUPS = ("model", "policy", "key")
_COUNTS = {
    **{"calls": "calls", "errors": "errors", "cached": "cache_hits"},
    **{"tokens in": "input_tokens", "tokens out": "output_tokens"},
}
_LATENCIES = {
    **{"all": "total_ms", "first event": "first_token_ms"},
    **{"upstream": "upstream_ms", "route": "route_ms"},
}
_WIDE = 160  # columns where nobody's terminal says how many there are


def show_summary(found: Mapping[str, Any]) -> None:
    """Print what ``LedgerReader.summary`` returned; USD are rounded to four digits."""
    plain = Console(highlight=False, markup=False)
    console = plain if plain.is_terminal else Console(highlight=False, markup=False, width=_WIDE)
    console.print(_traffic(found), soft_wrap=True)
    if found["best_model"] is not None:
        console.print(_savings(found), soft_wrap=True)
    for group in _GROUPS:
        rows = found[f"by_{group}"]
        if rows:
            console.print()
            console.print(_groups(group, rows))
    if found["by_error"]:
        console.print()
        console.print(_table("error", ["calls"], [(k, [str(n)]) for k, n in _errors(found)]))
    latencies = [(label, found["latency_ms"][name]) for label, name in _LATENCIES.items()]
    known = [(label, figures) for label, figures in latencies if figures is not None]
    if known:
        rows_ms = [(label, [_rounded(value) for value in each.values()]) for label, each in known]
        console.print()
        console.print(_table("latency, ms", list(known[0][1]), rows_ms))


def _traffic(found: Mapping[str, Any]) -> str:
    since = found["since"]
    start = "" if since is None else f" since {_moment(since)}"
    return (
        f"{counted(found['calls'], 'call')}{start}: {found['cost_usd']:.4g} USD, "
        f"{counted(found['errors'], 'error')}, {found['cache_hits']} answered by a cache "
        f"(worth {found['cache_saved_usd']:.4g} USD)"
    )


def _savings(found: Mapping[str, Any]) -> str:
    saved = found["saved_usd"]
    told = f"saved {saved:.4g} USD against" if saved >= 0 else f"cost {-saved:.4g} USD more than"
    return (
        f"{told} always asking {found['best_model']}, as expected: "
        f"{found['compared_cost_usd']:.4g} in place of {found['best_model_cost_usd']:.4g} USD, on "
        f"{counted(found['compared_calls'], 'call')} whose decision knew both"
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _rounded(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _errors(found: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(name or "(no code)", count) for name, count in found["by_error"].items()]


def _groups(group: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    return _table(
        group,
        [*_COUNTS, "USD"],
        [
            (name or "(none)", [*(str(row[n]) for n in _COUNTS.values()), f"{row['cost_usd']:.4g}"])
            for name, row in rows.items()
        ],
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> Table:
    table = Table(title, box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in rows:
        table.add_row(name, *values)
    return table
