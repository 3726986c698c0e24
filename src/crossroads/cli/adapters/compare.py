"""``crossroads adapters compare``: the routers a folder of adapters can have, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.adapters.loading import (
    adapters_folder,
    check_rows,
    load,
    neural,
    on_a_folder,
    say,
)
from crossroads.cli.options import comma_separated
from crossroads.cli.words import counted
from crossroads.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from crossroads.adapters.base_models import BaseModel
    from crossroads.adapters.collection.tasks import Task
    from crossroads.adapters.comparing import Comparison
    from crossroads.adapters.measuring import Arm
    from crossroads.core.statistics import Summary

_PIPE_WIDTH = 160


@click.command("compare")
@on_a_folder
@click.option(
    "--routers",
    metavar="A,B",
    help="As NAME, NAME:setting=value, package.module.Class or saved; all that DIR has data for.",
)
@click.option(
    "--tasks",
    metavar="A,B",
    help="Of the collection; by default those that adapters are named after, and all held out.",
)
@click.option(
    "--rows-file",
    metavar="JSONL",
    type=click.Path(path_type=Path),
    help='Your own test rows in their place: {"task", "prompt", "answer", "options"} a line.',
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Test rows of every task and seed.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Paired seeds.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; torch's own choice.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Also write the JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON only.")
def command(
    *,
    folder: Path,
    model: Path | None,
    partial: bool,
    routers: str | None,
    tasks: str | None,
    rows_file: Path | None,
    rows: int,
    seeds: int,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare routers over the adapters in DIR: same prompts, same seeds, one table a group.

    Beside the routers run the base model, the uniform mix and, where adapters are named after
    tasks, the oracle. A group holds routers that need the same: one that was fitted on examples is
    not ranked beside one that saw none. Loss is in nats per answer token, mean over tasks; accuracy
    the share of rows whose answer is the likeliest option. A run that was stopped goes on.

    JSON: {model, experts, tasks: [{name, side, rows, same_rows}], rows, seeds, threads, groups:
    [{group, about, arms: [{router, settings, needs: [text], axes: {axis: value} or null, held_in,
    held_out: {nll, accuracy}, gap_closed, tasks: {task: {nll, accuracy}}, parameters, held_bytes,
    prepare_seconds, tokens_per_s, decode_tokens_per_s, speed_ratio, error}]}], left_out: {router:
    why}, notes: [text], machine, version, created}; a figure is {mean, low, high, per_seed} or
    null, and low and high are null where every seed scores the same rows (same_rows). Exit code 1
    when a router named in --routers could not be run; one that has to learn and was not taught is
    refused before anything is loaded (exit code 2).
    """
    if tasks is not None and rows_file is not None:
        raise UsageError("compare: --tasks names the collection's, --rows-file gives others")
    from crossroads.core.files import check_writable, write_atomically
    from crossroads.core.progress import progress_bar

    if out is not None:
        check_writable(out)
    with neural():
        import torch

        from crossroads.adapters.comparing import candidates, compare
        from crossroads.adapters.fingerprints import code_fingerprint, model_fingerprint
        from crossroads.models.embedding_cache import cache_folder

        if threads is not None:
            torch.set_num_threads(threads)
        wanted = comma_separated(routers, "--routers")
        folder = adapters_folder(folder)
        check_rows(rows_file, tasks)
        base, bank = load(folder, model, wanted or (), partial=partial)
        chosen = _tasks(tasks, rows_file, bank.names, base)
        able, left_out = (wanted, {}) if wanted else candidates(bank, folder, chosen)
        made = f"{code_fingerprint()}-{model_fingerprint(base.model)}"
        with progress_bar("Comparing routers") as moved:
            found = compare(
                base, bank, able, chosen,
                rows=rows, seeds=range(seeds), folder=folder, left_out=left_out,
                cache=cache_folder() / "adapters" / f"compared-{made}", progress=moved,
            )  # fmt: skip
    failed = [arm for arm in found.arms if arm.error is not None and arm.router in (wanted or ())]
    told = json.dumps(found.to_dict(), indent=2, allow_nan=False)
    if out is not None:
        write_atomically(out, told + "\n")
    if as_json:
        click.echo(told)
    else:
        _show(found, told_later=failed[:1])
    for arm in failed[:1]:
        why = str(arm.error).removeprefix(f"router {arm.router}: ")
        raise InputError(f"router {arm.router} could not be run: {why}")


def _tasks(
    names: str | None, path: Path | None, experts: tuple[str, ...], base: BaseModel
) -> list[Task]:
    from crossroads.adapters.collection.tasks import get_task, task_names
    from crossroads.adapters.task_files import read_tasks

    if path is not None:
        return read_tasks(path, experts, base.tokenizer, length=base.context, say=say)
    wanted = comma_separated(names, "--tasks")
    if wanted is None:
        own = [name for name in task_names() if name in experts]
        if not own:
            raise UsageError(
                "compare: no adapter is named after a task of the collection; give your test rows "
                "with --rows-file, or name tasks with --tasks"
            )
        wanted = [*own, *task_names(held_in=False)]
    return [get_task(name) for name in wanted]


def _show(found: Comparison, *, told_later: Sequence[Arm] = ()) -> None:
    from rich.console import Console

    from crossroads.adapters.comparing import grouped
    from crossroads.adapters.needs import GROUPS

    console = Console(highlight=False, markup=False)
    console = console if console.is_terminal else Console(width=_PIPE_WIDTH, markup=False)
    sides = [found.side(task.name) for task in found.tasks]
    click.echo(
        f"{counted(len(found.experts), 'adapter')} of {found.model}; "
        f"{counted(sides.count('held_in'), 'held-in task')}, {sides.count('held_out')} held out; "
        f"{_rows_of(found)} a task and seed, {counted(len(found.seeds), 'seed')}"
    )
    for group, about in GROUPS.items():
        ran = [arm for arm in found.ranked(group) if arm.error is None]
        if ran:
            click.echo(f"\n{group}: {about}")
            _table(console, found, ran)
    few = "; an interval needs 3 seeds or more" if len(found.seeds) < 3 else ""
    click.echo(f"+- is half the 95 % interval over seeds{few}; nothing is ranked across groups")
    for note in found.notes:
        click.echo(f"note: {note}")
    for arm in found.arms:
        if arm.error is not None and arm not in told_later:
            click.echo(f"{arm.router} did not run: {arm.error}", err=True)
    for line in grouped(found.left_out):
        click.echo(line, err=True)


def _rows_of(found: Comparison) -> str:
    """Return the test rows of a task and seed; the fewest and the most where tasks differ."""
    counts = {*found.drawn.values()}
    fewest = f"{min(counts)} to " if len(counts) > 1 else ""
    return f"{fewest}{counted(max(counts), 'row')}"


def _table(console: Console, found: Comparison, arms: list[Arm]) -> None:
    from rich.table import Table

    from crossroads.adapters.choice import SAVED
    from crossroads.core.report.fitted import NAME_WIDTH, FittedTable

    headings = (
        "loss\nheld in", "accuracy\n", "gap\nclosed", "loss\nheld out", "accuracy\n",
        "prompt\ntokens/s", "of the\nbase's", "answer\ntokens/s", "routing's\nnumbers", "held\nMiB",
    )  # fmt: skip
    names = [f"{a.router} ({a.kind})" if a.router == SAVED else a.router for a in arms]

    def made(count: int) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("router", overflow="fold", min_width=NAME_WIDTH)
        for heading in headings[:count]:
            table.add_column(heading, justify="right", no_wrap=True)
        for name, arm in zip(names, arms, strict=True):
            table.add_row(name, *_figures(found, arm)[:count])
        return table

    titles = [heading.replace("\n", " ").strip() for heading in headings]
    console.print(FittedTable(make=made, titles=titles, names=names))


def _figures(found: Comparison, arm: Arm) -> list[str]:
    speed = arm.speed
    return [
        _text(found.mean(arm, "held_in"), ".3f"),
        _text(found.mean(arm, "held_in", "accuracy"), ".1%"),
        _text(found.closed(arm), ".0%"),
        _text(found.mean(arm, "held_out"), ".3f"),
        _text(found.mean(arm, "held_out", "accuracy"), ".1%"),
        f"{speed.prefill:,.0f}" if speed else "-",
        f"{speed.prefill_ratio:.2f}" if speed and speed.prefill_ratio is not None else "-",
        f"{speed.decode:,.1f}" if speed else "-",
        f"{arm.parameters:,}",
        _mebibytes(arm.held_bytes),
    ]


def _mebibytes(count: int) -> str:
    """Return bytes in MiB, two figures of small ones.

    >>> _mebibytes(23_000), _mebibytes(14_660_000), _mebibytes(0)
    ('0.022', '14.0', '0.0')
    """
    size = count / 2**20
    return f"{size:.2g}" if 0 < size < 1 else f"{size:,.1f}"


def _text(summary: Summary | None, form: str) -> str:
    from crossroads.core.report import half_shown

    if summary is None or summary.mean is None:
        return "-"
    half: Any = half_shown(summary)
    return f"{summary.mean:{form}}" + ("" if half is None else f" +-{half:{form}}")
