"""``crossroads arena prompts``: compare routers, print the leaderboard, write the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossroads.cli.arena.showing import arena_folder, show
from crossroads.cli.options import comma_separated
from crossroads.core.errors import InputError, UsageError
from crossroads.core.progress import progress_bar

if TYPE_CHECKING:
    from crossroads.core.arena import Task
    from crossroads.prompts.outcomes import OutcomeTable
    from crossroads.prompts.splits import SplitBy
    from crossroads.prompts.tasks import Missing

FAMILY = "prompts"
STREAMED_TRAIN = 20_000  # prompts: some routers keep all of them in memory
DEFAULT_OUTCOMES = "mmlu-pro:served"


@click.command("prompts")
@click.option(
    "--outcomes",
    metavar="F",
    default=DEFAULT_OUTCOMES,
    show_default=True,
    help="Outcome table: a file, a folder of a known data set, or the name of a shipped one.",
)
@click.option("--pool", metavar="P", help="Prices and cards of the models: a file or a name.")
@click.option("--models", metavar="M,N", help="Only these models.")
@click.option("--routers", metavar="A,B", help="Routers, as NAME or NAME:setting=value; all.")
@click.option(
    "--encoder",
    type=click.Choice(["static", "minilm"]),
    default="static",
    show_default=True,
    help="What turns a prompt into features.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="Processes; one per core.")
@click.option(
    "--missing",
    type=click.Choice(["drop", "wrong"]),
    default="drop",
    show_default=True,
    help="Prompts some model was not run on: not judged, or counted as wrong.",
)
@click.option(
    "--train-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.7,
    show_default=True,
)
@click.option(
    "--split",
    "split_by",
    type=click.Choice(["prompt", "domain"]),
    default="prompt",
    show_default=True,
    help="Judge on prompts not learnt from, or on whole domains not learnt from.",
)
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Read a Parquet table in batches and keep it on disk, in --out; from 4 million rows on.",
)
@click.option(
    "--max-train",
    type=click.IntRange(1),
    help="Learn from at most so many prompts; 20,000 of a streamed table.",
)
@click.option(
    "--experiment",
    type=click.Choice(["routing", "pool-change"]),
    default="routing",
    show_default=True,
    help="pool-change: a model leaves the pool, and comes back with few outcomes.",
)
@click.option("--newcomer", metavar="M", help="That model; the one best in training.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help=f"runs/arena-{FAMILY}")
@click.option("--json", "as_json", is_flag=True, help="Print the leaderboard as JSON only.")
def command(
    *,
    outcomes: str,
    pool: str | None,
    models: str | None,
    routers: str | None,
    encoder: str,
    seeds: int,
    engine: str,
    jobs: int | None,
    missing: Missing,
    train_share: float,
    split_by: SplitBy,
    stream: bool | None,
    max_train: int | None,
    experiment: str,
    newcomer: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare routers of prompts on recorded outcomes.

    Prints the leaderboard and writes report.html and leaderboard.json. A run that was stopped
    continues: finished cells are kept in the output folder. Exit code 1 when a router named in
    --routers could not be run. JSON: see crossroads.core.arena.leaderboard_schema().
    """
    from crossroads.core.arena import run_arena
    from crossroads.prompts.routers import build_router
    from crossroads.prompts.taxonomy import unlike_knowledge

    if newcomer is not None and experiment == "routing":
        raise UsageError("--newcomer names a model for --experiment pool-change; give that too")
    wanted = comma_separated(routers, "--routers")
    for router in wanted or ():
        build_router(router)  # refuse a wrong name before minutes of encoding
    folder = arena_folder(out, FAMILY)
    task = _prompt_task(
        outcomes,
        pool=pool,
        models=comma_separated(models, "--models"),
        encoder=encoder,
        missing=missing,
        train_share=train_share,
        split_by=split_by,
        max_train=max_train,
        experiment=experiment,
        newcomer=newcomer,
        stage=folder if stream is not False else None,
        stream=stream is True,
    )
    chosen = wanted or _candidates()
    board = run_arena(task, chosen, seeds=seeds, out=folder, engine=engine, jobs=jobs)
    if all(row.error is not None for row in board.rows):
        raise InputError(f"no router could be run: {board.rows[0].error}")
    board = replace(board, notes=(*board.notes, *unlike_knowledge(r.router for r in board.rows)))
    show(task, board, folder, as_json=as_json)
    if any(board[router].error is not None for router in wanted or ()):
        click.get_current_context().exit(1)


def _candidates() -> list[str]:
    """Return every router that can be served, but the baselines: the task runs what it allows."""
    from crossroads.prompts.baselines import BASELINES
    from crossroads.prompts.routers import build_router, router_names

    names = [name for name in router_names() if name not in BASELINES]
    return [name for name in names if not build_router(name).hindsight]


def _prompt_task(
    outcomes: str,
    *,
    pool: str | None,
    models: list[str] | None,
    encoder: str,
    missing: Missing,
    train_share: float,
    split_by: SplitBy,
    max_train: int | None,
    experiment: str,
    newcomer: str | None,
    stage: Path | None,
    stream: bool,
) -> Task:
    from crossroads.prompts.pool import read_pool
    from crossroads.prompts.pool_change import PoolChangeTask
    from crossroads.prompts.readers import read_outcomes
    from crossroads.prompts.staging import should_stream, stage_outcomes
    from crossroads.prompts.tasks import prompt_task

    cards = None if pool is None else read_pool(pool)
    remarks = [cards.note] if cards is not None and cards.note else []
    if stage is not None and (stream or should_stream(Path(outcomes))):
        with progress_bar("reading outcomes") as progress:
            table: OutcomeTable = stage_outcomes(
                Path(outcomes), stage, encoder=encoder, pool=cards, models=models, progress=progress
            )
        max_train = max_train or STREAMED_TRAIN
        remarks.append("read in batches; scores, costs and embeddings stay on disk")
    else:
        table = read_outcomes(outcomes, pool=cards, models=models)
    with progress_bar("encoding prompts") as progress:
        task = prompt_task(
            table,
            name=Path(outcomes).name or outcomes,
            pool="" if cards is None else cards.name,
            encoder=encoder,
            train_share=train_share,
            split_by=split_by,
            max_train=max_train,
            missing=missing,
            remarks=remarks,
            progress=progress,
        )
    return task if experiment == "routing" else PoolChangeTask(base=task, newcomer=newcomer)
