"""``crossroads collect``: run prompts through a pool of models and score the answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossroads.core.progress import progress_bar

if TYPE_CHECKING:
    from crossroads.prompts.collect import CollectReport

SHOWN_FAILURES = 5


@click.command()
@click.option("--pool", required=True, help="pool.yaml, or the name of a shipped pool.")
@click.option(
    "--prompts", required=True, help="JSON lines or CSV: prompt_id, prompt, reference[, scorer...]."
)
@click.option("--out", required=True, help="Outcome table to write: .parquet, .csv or .jsonl.")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Calls in flight per model.",
)
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--system", help="System message; without it, the expert's own.")
@click.option("--responses/--no-responses", default=True, help="Keep the answers' text.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    *,
    pool: str,
    prompts: str,
    out: str,
    concurrency: int,
    max_tokens: int,
    temperature: float,
    system: str | None,
    responses: bool,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Run every prompt through every model of a pool, and write the outcome table.

    Finished cells are kept in OUT.partial.jsonl at once: an interrupted run continues when the same
    command is given again. Cells whose model failed stay missing, and exit code 1 says so.

    \b
    JSON: {num_prompts, num_cells, num_reused, failures: [{prompt_id, model, error}],
           models: {NAME: {score, cost_usd, latency_s}}, seconds, out}
    """
    from crossroads.prompts.collect import CollectSettings, collect, read_prompts
    from crossroads.prompts.pool import read_pool

    settings = CollectSettings(
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        concurrency=concurrency,
        keep_responses=responses,
    )
    chosen, items = read_pool(pool), read_prompts(prompts)
    with progress_bar("cells") as progress:
        report = collect(
            chosen, items, Path(out), settings=settings, overwrite=overwrite, progress=progress
        )
    if as_json:
        import orjson

        click.echo(orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2))
    else:
        _show(report)
    return 1 if report.failures else 0


def _show(report: CollectReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "score", "cost USD", "latency s", box=None, pad_edge=False)
    for name, figures in report.models.items():
        shown = (figures["score"], figures["cost_usd"], figures["latency_s"])
        table.add_row(name, *("-" if value is None else f"{value:.4g}" for value in shown))
    Console().print(table)
    finished = report.num_cells - len(report.failures)
    click.echo(f"{finished} of {report.num_cells} cells ({report.num_reused} from an earlier run)")
    if report.out:
        click.echo(f"outcomes: {report.out}")
    for failure in report.failures[:SHOWN_FAILURES]:
        click.echo(f"missing: {failure.prompt_id} x {failure.model}: {failure.error}", err=True)
    if report.failures:
        click.echo(
            f"error: {len(report.failures)} cells are missing; run the same command again to "
            "retry them",
            err=True,
        )
