"""``crossroads verify``: measure a paper's claim here."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from crossroads.core import catalog
from crossroads.core.catalog import Verdict
from crossroads.core.errors import CrossroadsError, UsageError


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

    Verdicts: holds, holds in direction, null (no difference seen), fails. The exit code is 1 if any
    claim fails or could not be measured. JSON: a list of {name, verdict, paper, measured, seeds,
    seconds, data}.
    """
    verdicts, is_complete = _measure(_chosen(names, run_all), full)
    if as_json:
        click.echo(json.dumps([verdict.to_dict() for verdict in verdicts], indent=2))
    else:
        for verdict in verdicts:
            click.echo(_report(verdict))
    if run_all:
        num_planned = sum(card.status == "planned" for card in catalog.load_cards())
        click.echo(f"{num_planned} systems are planned and have no claim to measure yet", err=True)
    if not is_complete or any(verdict.verdict == "fails" for verdict in verdicts):
        context.exit(1)


def _chosen(names: tuple[str, ...], run_all: bool) -> list[str]:
    """Return the systems to measure, each once; refuse unknown and planned ones at the start."""
    if bool(names) == run_all:
        raise UsageError("verify: expected system names or --all, and not both")
    if run_all:
        return [card.name for card in catalog.load_cards() if card.verify]
    return [catalog.verifiable(name).name for name in dict.fromkeys(names)]


def _measure(names: list[str], full: bool) -> tuple[list[Verdict], bool]:
    """Return the verdicts and whether all claims could be measured; one error stops no other."""
    verdicts = []
    for name in names:
        try:
            with _progress(name):
                verdicts.append(catalog.verify(name, full=full))
        except CrossroadsError as error:
            click.echo(f"error: {name}: {error}", err=True)
    return verdicts, len(verdicts) == len(names)


def _progress(name: str) -> AbstractContextManager[Any]:
    """Show what is being measured on a terminal, nothing in a pipe."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.status(f"measuring {name}") if console.is_terminal else nullcontext()


def _report(verdict: Verdict) -> str:
    lines = [f"{verdict.name}: {verdict.verdict} ({verdict.seconds:.2f} s)"]
    for label, figures in (("paper", verdict.paper), ("measured", verdict.measured)):
        lines += [f"  {label:8}  {name} = {_shown(value)}" for name, value in figures.items()]
    if verdict.seeds:
        lines.append(f"  seeds     {', '.join(map(str, verdict.seeds))}")
    lines.append(f"  data      {verdict.data}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
