"""``crossroads arena leaderboard``: show a board that submissions were judged on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from crossroads.cli.arena.submit import DEFAULT_BOARD


@click.command("leaderboard")
@click.option(
    "--board",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=DEFAULT_BOARD,
    show_default=True,
    help="The folder crossroads arena submit wrote.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the leaderboard as JSON only.")
def command(*, board: Path, as_json: bool) -> None:
    """Show the submissions of a board, best arena score first.

    JSON: {data, evidence, num_rows, notes, rows: [{rank, router_name, models, submitted,
    arena_score, accuracy, cost_per_1k_usd, num_rows, num_failed, optimality, robustness, latency,
    breakdown, remarks, notes}]}; what was not measured is null. Rows marked * are baselines and
    rows marked ! carry a remark, such as having been fitted on the rows; neither competes.
    """
    from crossroads.prompts.routerarena.board import read_board
    from crossroads.prompts.routerarena.page import JSON_NAME, PAGE_NAME, read_leaderboard

    facts = read_board(board)
    has_rows = (board / JSON_NAME).exists()
    content = read_leaderboard(board) if has_rows else {**_empty(facts), "rows": []}
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    _show(content)
    if has_rows:
        click.echo(f"page {board / PAGE_NAME}")


def _empty(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("data", "evidence", "num_rows", "notes")}


def _show(content: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from crossroads.core.report import format_figure
    from crossroads.core.report.fitted import NAME_WIDTH, FittedTable
    from crossroads.prompts.routerarena.page import METRICS, is_baseline, metric_values, remarks_of

    shown = [metric for metric in METRICS if metric.headline]

    def made(count: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("", justify="right")
        table.add_column("router", overflow="fold", min_width=NAME_WIDTH)
        for metric in shown[:count]:
            table.add_column(f"{metric.title}\n{metric.unit}", justify="right", no_wrap=True)
        for row in content["rows"]:
            values = metric_values(row)
            figures = (format_figure(metric, values[metric.name]) for metric in shown[:count])
            marks = ("*" if is_baseline(row) else "") + ("!" if remarks_of(row) else "")
            name = f"{row['router_name']} {marks}".rstrip()
            table.add_row(f"{row['rank']} ", name, *figures, style="dim" if marks else "")
        return table

    names = [row["router_name"] for row in content["rows"]]
    table = FittedTable(make=made, titles=[m.title for m in shown], names=names)
    console = Console(highlight=False, markup=False)
    heading = f"{content['data']}, {content['num_rows']} rows ({content['evidence']})"
    console.print(heading, style="bold", soft_wrap=True)
    console.print(table)
    if any(is_baseline(row) for row in content["rows"]):
        click.echo("* baseline: does not compete")
    for row in content["rows"]:
        for remark in remarks_of(row):
            click.echo(f"! {row['router_name']} does not compete: {remark}")
    for note in content["notes"]:
        click.echo(f"note: {note}")
