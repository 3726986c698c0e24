"""``crossroads collect``: run prompts through a pool of models and score the answers, or import
the logs of another harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.core.errors import InputError, UsageError
from crossroads.core.progress import progress_bar

if TYPE_CHECKING:
    from crossroads.prompts.collect import CollectEstimate, CollectReport, CollectSettings

_PER_MINUTE = "[MODEL=]N"


@click.command()
@click.option("--pool", help="pool.yaml, or the name of a shipped pool.")
@click.option("--prompts", help="JSON lines or CSV: prompt_id, prompt, reference[, scorer...].")
@click.option("--out", required=True, help="Outcome table to write: .parquet, .csv or .jsonl.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N prompts.")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Calls in flight per model.",
)
@click.option("--rpm", metavar=_PER_MINUTE, multiple=True, help="Calls per minute, per model.")
@click.option("--tpm", metavar=_PER_MINUTE, multiple=True, help="Tokens per minute, per model.")
@click.option(
    "--max-cost", type=float, help="Stop before the table costs more, in the pool's unit."
)
@click.option(
    "--dry-run", is_flag=True, help="Ask nothing; show what would be asked and its price."
)
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--system", help="System message; without it, the expert's own.")
@click.option("--responses/--no-responses", default=True, help="Keep the answers' text.")
@click.option("--from-log", multiple=True, help="Import this log, or folder of logs, instead.")
@click.option("--metric", help="With --from-log: the metric or scorer to take as score.")
@click.option("--filter", "filter_name", help="With --from-log: the filter to take.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    *,
    pool: str | None,
    prompts: str | None,
    out: str,
    limit: int | None,
    concurrency: int,
    rpm: tuple[str, ...],
    tpm: tuple[str, ...],
    max_cost: float | None,
    dry_run: bool,
    max_tokens: int,
    temperature: float,
    system: str | None,
    responses: bool,
    from_log: tuple[str, ...],
    metric: str | None,
    filter_name: str | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Run every prompt through every model of a pool, and write the outcome table.

    Finished cells are kept in OUT.partial.jsonl at once: an interrupted run continues when the same
    command is given again. Cells whose model failed stay missing, and exit code 1 says so. With
    --from-log the table comes from logs of Inspect or lm-evaluation-harness instead.

    \b
    JSON: {num_prompts, num_cells, num_finished, num_reused, num_unasked,
           failures: [{prompt_id, model, error}], unscored: [same],
           models: {NAME: {score, cost, latency_s}}, judges: {NAME: {num_grades, cost}},
           cost_unit, seconds, out}
    with --dry-run: {num_prompts, num_cells, num_reused,
           models: {NAME: {num_calls, input_tokens, cost}}, cost, cost_unit}
    with --from-log: {num_prompts, models: {NAME: {score, num_scored}}, source, out}
    """
    if from_log:
        if prompts or dry_run:
            raise UsageError("--from-log asks nothing; leave out --prompts and --dry-run")
        return _import(_Logs(from_log, metric, filter_name, pool), out, overwrite, as_json)
    if metric or filter_name:
        raise UsageError("--metric and --filter choose among a log's scores; add --from-log")
    if pool is None or prompts is None:
        raise UsageError("expected --pool and --prompts, or --from-log")
    from crossroads.prompts.collect import CollectSettings

    settings = CollectSettings(
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        concurrency=concurrency,
        requests_per_minute=_per_minute("--rpm", rpm),
        tokens_per_minute=_per_minute("--tpm", tpm),
        max_cost=max_cost,
        keep_responses=responses,
    )
    return _collect(
        pool,
        prompts,
        out,
        settings,
        limit=limit,
        dry_run=dry_run,
        overwrite=overwrite,
        as_json=as_json,
    )


@dataclass(frozen=True)
class _Logs:
    sources: tuple[str, ...]
    metric: str | None
    filter_name: str | None
    pool: str | None


def _collect(
    pool: str,
    prompts: str,
    out: str,
    settings: CollectSettings,
    *,
    limit: int | None,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> int:
    from crossroads.prompts.collect import collect, estimate, read_prompts
    from crossroads.prompts.pool import read_pool

    chosen, items = read_pool(pool), read_prompts(prompts)[:limit]
    if dry_run:
        found = estimate(chosen, items, out, settings=settings)
        _show_json(found.to_dict()) if as_json else _show_estimate(found)
        return 0
    with progress_bar("cells") as progress:
        report = collect(
            chosen,
            items,
            out,
            settings=settings,
            overwrite=overwrite,
            progress=progress,
            scoring_progress=progress,
        )
    _show_json(report.to_dict()) if as_json else _show(report)
    return 0 if report.is_complete else 1


def _import(logs: _Logs, out: str, overwrite: bool, as_json: bool) -> int:
    import numpy as np

    from crossroads.prompts.logs import read_logs
    from crossroads.prompts.pool import read_pool
    from crossroads.prompts.readers import write_outcomes

    if Path(out).exists() and not overwrite:
        raise InputError(f"out {out!r} exists; choose another name or pass --overwrite")
    pool = None if logs.pool is None else read_pool(logs.pool)
    table = read_logs(logs.sources, metric=logs.metric, filter_name=logs.filter_name, pool=pool)
    write_outcomes(table, out)
    models = {
        name: {
            "score": float(np.nanmean(table.score[:, k])) if known[k] else None,
            "num_scored": int(known[k]),
        }
        for known in [np.isfinite(table.score).sum(axis=0)]
        for k, name in enumerate(table.models)
    }
    if as_json:
        found = {"num_prompts": len(table), "models": models, "source": table.source, "out": out}
        _show_json(found)
        return 0
    _show_table(
        ("model", "score", "scored"), [(n, m["score"], m["num_scored"]) for n, m in models.items()]
    )
    click.echo(f"{len(table)} prompts from {table.source}")
    click.echo(f"outcomes: {out}")
    return 0


def _per_minute(option: str, given: tuple[str, ...]) -> dict[str, int]:
    """Read ``60`` (every model) and ``MODEL=60``. Raises UsageError."""
    from crossroads.prompts.collect import EVERY_MODEL

    bounds = {}
    for text in given:
        model, _, number = text.rpartition("=")
        if not number.isdecimal():
            raise UsageError(f"{option} {text!r}: expected a whole number, or MODEL=NUMBER")
        bounds[model or EVERY_MODEL] = int(number)
    return bounds


def _show_json(found: Mapping[str, Any]) -> None:
    import orjson

    click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))


def _show_table(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*titles, box=None, pad_edge=False)
    for name, *values in rows:
        table.add_row(name, *("-" if value is None else f"{value:.4g}" for value in values))
    Console().print(table)


def _show_estimate(found: CollectEstimate) -> None:
    _show_table(
        ("model", "calls", "input tokens", f"cost {found.cost_unit}"),
        [(n, m["num_calls"], m["input_tokens"], m["cost"]) for n, m in found.models.items()],
    )
    click.echo(
        f"{found.num_cells} cells, {found.num_reused} of them from an earlier run; about "
        f"{found.cost:.4g} {found.cost_unit} if every answer has the longest length"
    )


def _show(report: CollectReport) -> None:
    from crossroads.prompts.collect import summarise

    _show_table(
        ("model", "score", f"cost {report.cost_unit}", "latency s"),
        [(n, m["score"], m["cost"], m["latency_s"]) for n, m in report.models.items()],
    )
    for name, judged in report.judges.items():
        cost = "-" if judged["cost"] is None else f"{judged['cost']:.4g}"
        click.echo(f"judge {name}: {judged['num_grades']:g} grades, {cost} {report.cost_unit}")
    click.echo(f"{report.num_finished} of {report.num_cells} cells "
               f"({report.num_reused} from an earlier run)")  # fmt: skip
    if report.out:
        click.echo(f"outcomes: {report.out}")
    for kind, failures in (("failed", report.failures), ("unscored", report.unscored)):
        for model, count, first in summarise(failures):
            what = f"{kind}: {model}: {count}; first {first.prompt_id}: {first.error}"
            click.echo(what, err=True)
    if report.num_unasked:
        click.echo(f"error: {report.num_unasked} calls were not made for want of money; run the "
                   "same command again with a higher --max-cost", err=True)  # fmt: skip
    elif not report.is_complete:
        click.echo("error: the table is not complete; run the same command again to retry what "
                   "failed", err=True)  # fmt: skip
