"""``crossroads verify``: measure a paper's claim here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from crossroads.core import catalog
from crossroads.core.catalog import Verdict
from crossroads.core.errors import CrossroadsError, UsageError

_WIDTH = 100  # of a report; what does not fit on one line becomes several
_INDENT = 14
_MOST_VALUES = 16  # of a list


@click.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "run_all", is_flag=True, help="Every system whose claim can be measured.")
@click.option("--full", is_flag=True, help="The long run, where a claim has one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a report.")
@click.pass_context
def command(
    context: click.Context, names: tuple[str, ...], run_all: bool, full: bool, as_json: bool
) -> None:
    """Measure the claim of each system NAME here and give a verdict.

    Verdicts: holds, holds in direction, null (no difference seen), fails. Each is printed as soon
    as it is there; JSON comes at the end, with all details. The exit code is 1 if any claim fails
    or could not be measured. JSON: a list of {name, verdict, paper, measured, seeds, seconds,
    data}.
    """
    chosen = _chosen(names, run_all)
    verdicts = []
    for verdict in _measure(chosen, full):
        verdicts.append(verdict)
        if not as_json:
            click.echo(_report(verdict))
    if as_json:
        click.echo(json.dumps([verdict.to_dict() for verdict in verdicts], indent=2))
    if run_all:
        num_planned = sum(card.status == "planned" for card in catalog.load_cards())
        click.echo(f"{num_planned} systems are planned and have no claim to measure yet", err=True)
    if len(verdicts) < len(chosen) or any(verdict.verdict == "fails" for verdict in verdicts):
        context.exit(1)


def _chosen(names: tuple[str, ...], run_all: bool) -> list[str]:
    """Return the systems to measure, each once; refuse unknown and planned ones at the start."""
    if bool(names) == run_all:
        raise UsageError("verify: expected system names or --all, and not both")
    if run_all:
        return [card.name for card in catalog.load_cards() if card.verify]
    return [catalog.verifiable(name).name for name in dict.fromkeys(names)]


def _measure(names: list[str], full: bool) -> Iterator[Verdict]:
    """Yield each verdict when it is there; an error is told and stops no other claim."""
    for number, name in enumerate(names, start=1):
        _tell(f"measuring {name} ({number} of {len(names)}) ...")
        try:
            verdict = catalog.verify(name, full=full)
        except CrossroadsError as error:
            click.echo(f"error: {name}: {error}", err=True)
            continue
        _tell(f"measured {name} in {verdict.seconds:.1f} s")
        yield verdict


def _tell(message: str) -> None:
    """Say what is going on to a person at a terminal; nothing in a pipe."""
    if sys.stderr.isatty():
        click.echo(message, err=True)


def _report(verdict: Verdict) -> str:
    lines = [f"{verdict.name}: {verdict.verdict} ({verdict.seconds:.2f} s)"]
    for label, figures in (("paper", verdict.paper), ("measured", verdict.measured)):
        for name, value in figures.items():
            first, *others = _lines(name, value)
            lines += [f"  {label:8}  {first}", *(" " * _INDENT + other for other in others)]
    if verdict.seeds:
        lines.append(f"  seeds     {', '.join(map(str, verdict.seeds))}")
    lines.append(f"  data      {verdict.data}")
    return "\n".join(lines)


def _lines(name: str, value: Any) -> list[str]:
    """Return one figure as lines: on one if it fits, else as a table or indented."""
    value = _joined(value)
    if _is_leaf(value):
        return [f"{name} = {_shown(value)}"]
    if all(map(_is_leaf, value.values())):
        line = f"{name}: " + ", ".join(f"{key} = {_shown(part)}" for key, part in value.items())
        is_clear = not any(isinstance(part, list) for part in value.values())
        if is_clear and len(line) <= _WIDTH - _INDENT:
            return [line]
    parts = _table(value) or [line for key, part in value.items() for line in _lines(key, part)]
    return [name, *(f"  {line}" for line in parts)]


def _joined(value: Any) -> Any:
    """Return dicts of the same keys, one a seed, as one dict of lists; other values as they are."""
    if isinstance(value, tuple):
        value = list(value)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(row, Mapping) and row.keys() == value[0].keys() for row in value)
    ):
        value = {key: [row[key] for row in value] for key in value[0]}
    if isinstance(value, Mapping) and value and not _is_interval(value):
        return {str(key): _joined(part) for key, part in value.items()}
    return value


def _table(rows: Mapping[str, Any]) -> list[str]:
    """Return dicts of the same leaves as aligned columns; nothing where that is no narrow table."""
    dicts = [row for row in rows.values() if isinstance(row, Mapping) and not _is_interval(row)]
    if len(dicts) < len(rows) or len(rows) < 2:
        return []
    columns = list(dicts[0])
    if any(list(row) != columns or not all(map(_is_leaf, row.values())) for row in dicts):
        return []
    body = [
        [name, *(_shown(part) for part in row.values())]
        for name, row in zip(rows, dicts, strict=True)
    ]
    cells = [["", *columns], *body]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return lines if max(map(len, lines)) <= _WIDTH - _INDENT else []


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, Mapping) or _is_interval(value) or not value


def _is_interval(value: Any) -> bool:
    """Whether this is a mean with its interval over the seeds."""
    return isinstance(value, Mapping) and "mean" in value and value.keys() <= {
        "mean", "low", "high", "half_width", "per_seed"
    }  # fmt: skip


def _shown(value: Any) -> str:
    """Return a leaf in few characters: four significant digits, lists joined."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return _interval(value) if value else "none"
    if isinstance(value, list | tuple):
        return _list(value)
    return str(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _interval(value: Mapping[str, Any]) -> str:
    mean = _shown(value["mean"])
    if value.get("half_width") is not None:
        return f"{mean} +/- {value['half_width']:.2g}"
    if value.get("low") is not None and value.get("high") is not None:
        return f"{mean} [{_shown(value['low'])}, {_shown(value['high'])}]"
    return mean


def _list(values: Sequence[Any]) -> str:
    if not values:
        return "none"
    if any(isinstance(value, list | tuple | Mapping) for value in values):
        return "; ".join(_inner(value) for value in values)
    shown = ", ".join(map(_shown, values[:_MOST_VALUES]))
    left = len(values) - _MOST_VALUES
    return f"{shown}, ... ({left} more)" if left > 0 else shown


def _inner(value: Any) -> str:
    """Return an entry of a list; of what is nested deeper only the size, --json has the rest."""
    is_nested = isinstance(value, Mapping) and not _is_interval(value)
    if isinstance(value, list | tuple):
        is_nested = any(isinstance(part, list | tuple | Mapping) for part in value)
    return f"{len(value)} entries" if is_nested else _shown(value)
