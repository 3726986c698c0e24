"""``crossroads adapters survey``: the methods of the MoErging survey, filtered or recommended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from crossroads.adapters.survey.implementations import DEPARTURES, implementations
from crossroads.adapters.survey.inventory import KINDS, Method, inventory
from crossroads.adapters.survey.moerging import (
    Match,
    Recommendation,
    describe,
    methods,
    recommend,
)
from crossroads.adapters.survey.schema import AXES, Axis
from crossroads.adapters.survey.situation import parse_situation
from crossroads.cli.options import comma_separated
from crossroads.cli.words import counted
from crossroads.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

# Axes that are read together share a column, so that a row fits on a terminal.
_COLUMNS = {
    "experts": ("expert_training", "expert_data"),
    "routed by": ("routing_dataset",),
    "per": ("input_granularity", "depth_granularity"),
    "combines": ("expert_selection", "expert_aggregation"),
    "meant for": ("generalization", "user_dataset"),
}
_WIDE = 140  # from here on the cells of a column stand side by side
_PIPE_WIDTH = 300  # a pipe has no edge to wrap at; every row fits on a line of this


def _axis_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add an option for every axis, in the survey's order."""
    for axis in reversed(list(AXES.values())):
        text = f"{axis.question} One or several of: {', '.join(axis.values)}."
        function = click.option(f"--{axis.option}", metavar="A[,B]", help=text)(function)
    return function


@click.command("survey")
@_axis_options
@click.option("--implemented", is_flag=True, help="Only methods that a router here implements.")
@click.option("--kind", metavar="A[,B]", help=f"One or several of: {', '.join(KINDS)}.")
@click.option(
    "--source", metavar="WHO", help="Who chose the cells: authors (the survey's) or ours."
)
@click.option(
    "--situation",
    metavar="FACT[,...]",
    help="Recommend for a case instead, for instance private-data,target-examples=0,per=token.",
)
@click.option("--axes", "show_axes", is_flag=True, help="Explain the nine axes and their values.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    *,
    implemented: bool,
    kind: str | None,
    source: str | None,
    situation: str | None,
    show_axes: bool,
    as_json: bool,
    **axes: str | None,
) -> None:
    """Show the methods that route among experts trained before, by the MoErging survey's nine axes.

    Facts of a situation: private-data, custom-training, target-inputs, joint-training (each also
    =no), target-examples=N, full-from=N, tasks=known|new|both, per=token|example|task and
    experts=adapters|models. Filters narrow what is recommended. JSON: a list of {method, kind,
    source, arxiv, experts, cells: {axis: value}, about, routers: [names], departures: {router:
    {axis: why}}}; of a situation
    {situation, fits, near_misses} whose rows also have {because, unmet}: {fact: why}; of the axes a
    list of {axis, design, question, values: {value: meaning}}.
    """
    given = {**axes, "kind": kind, "source": source}
    wanted = {name: text for name, text in given.items() if text is not None}
    if show_axes:
        if wanted or implemented or situation is not None:
            raise UsageError("survey: --axes explains the axes and takes no filter; leave them out")
        _show_axes(as_json=as_json)
        return
    split = {
        name: comma_separated(text, f"--{name.replace('_', '-')}") or ()
        for name, text in wanted.items()
    }
    rows = methods(implemented=True if implemented else None, **split)
    if situation is None:
        _show_rows(rows, as_json=as_json)
    else:
        _show_recommendation(recommend(parse_situation(situation), among=rows), as_json=as_json)


def _show_rows(rows: Iterable[Method], *, as_json: bool) -> None:
    done = implementations()
    shown = [(method, done.get(method.name, ())) for method in rows]
    if as_json:
        click.echo(json.dumps([describe(*pair) for pair in shown], indent=2))
        return
    console = _console()
    if console.width >= _WIDE:
        cells = [[*_cells(method, ", "), _names(names)] for method, names in shown]
        _print_table(console, ["method", *_COLUMNS, "router"], cells, whole=_COLUMNS)
    else:
        cells = [_cells(method, ",\n") for method, _ in shown]
        for row, (_, routers) in zip(cells, shown, strict=True):
            row[0] += f"\nrouter: {_names(routers)}" if routers else ""
        _print_table(console, ["method", *_COLUMNS], cells, whole=_COLUMNS)
    for router in (name for _, names in shown for name in names if name in DEPARTURES):
        for axis, why in DEPARTURES[router].axes.items():
            click.echo(f"* {router} departs from its row in {axis}: {why}", err=True)
    num_done = sum(bool(routers) for _, routers in shown)
    click.echo(
        f"{len(shown)} of {counted(len(inventory()), 'method')}, {num_done} implemented here; "
        "what the columns mean: crossroads adapters survey --axes",
        err=True,
    )


def _cells(method: Method, between: str) -> list[str]:
    columns = [
        between.join(getattr(method.cells, axis) for axis in axes) for axes in _COLUMNS.values()
    ]
    marks: list[str] = [method.source] if method.source == "ours" else []
    marks += [method.kind] if method.kind != "moerging" else []
    name = f"{method.name} ({', '.join(marks)})" if marks else method.name
    return [name, *columns]


def _names(routers: tuple[str, ...]) -> str:
    """Return the routers of a row; a star marks one that departs from it."""
    return ", ".join(f"{name}*" if name in DEPARTURES else name for name in routers) or "-"


def _show_recommendation(found: Recommendation, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    _show_matches("Fit", found.fits, "why", lambda match: [f.why for f in match.findings])
    click.echo()
    _show_matches("Miss by one fact", found.near_misses, "what stands in the way",
                  lambda match: [f.why for f in match.unmet])  # fmt: skip


def _show_matches(
    title: str, matches: tuple[Match, ...], heading: str, why: Callable[[Match], list[str]]
) -> None:
    click.echo(f"{title}: {counted(len(matches), 'method')}")
    rows = [
        [
            match.method.name,
            _names(match.routers),
            match.method.about,
            "; ".join(why(match)) or "nothing in this situation rules it out",
        ]
        for match in matches
    ]
    if rows:
        _print_table(_console(), ["method", "router", "what it does", heading], rows)


def _show_axes(*, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_axis_row(axis) for axis in AXES.values()], indent=2))
        return
    for axis in AXES.values():
        click.echo(f"--{axis.option} ({axis.design}): {axis.question}")
        width = max(map(len, axis.values))
        for value, meaning in axis.values.items():
            click.echo(f"  {value:{width}}  {meaning}")


def _axis_row(axis: Axis) -> dict[str, Any]:
    return {
        "axis": axis.name,
        "design": axis.design,
        "question": axis.question,
        "values": dict(axis.values),
    }


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


def _print_table(
    console: Console, headings: list[str], rows: list[list[str]], whole: Iterable[str] = ()
) -> None:
    """Print a table; the columns in ``whole`` keep their width whatever the terminal's."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=heading in whole, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
