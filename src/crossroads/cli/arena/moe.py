"""``crossroads arena moe``: train the same small model with every router and compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossroads.cli.arena.showing import arena_folder, show
from crossroads.cli.options import comma_separated
from crossroads.core.errors import InputError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from crossroads.moe.tasks import MoETask

FAMILY = "moe"
TASKS = ("lm", "vision", "diffusion", "speech")
ALL = "all"
FULL_SEEDS = 3


@click.command("moe")
@click.option(
    "--task",
    "name",
    type=click.Choice([*TASKS, ALL]),
    default="vision",
    show_default=True,
    help="Bits per byte, digit images, drawing digits, spoken digits, or one after the other.",
)
@click.option(
    "--routers",
    metavar="A,B",
    help="As NAME, NAME:setting=value or package.module.Class; all. Baselines run along.",
)
@click.option(
    "--preset",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="quick: minutes, one seed; full: longer runs, three seeds.",
)
@click.option("--seeds", type=click.IntRange(1), help="Paired seeds; 1 of quick, 3 of full.")
@click.option("--steps", type=click.IntRange(1), help="Training steps, in place of the preset's.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="Processes; one per core.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="runs/arena-moe")
@click.option("--json", "as_json", is_flag=True, help="Print the leaderboard as JSON only.")
def command(
    *,
    name: str,
    routers: str | None,
    preset: str,
    seeds: int | None,
    steps: int | None,
    engine: str,
    jobs: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare routers of tokens at equal active compute, on models trained here.

    Names and what they do: crossroads list moe-routers. Seven baselines are always trained along,
    the dense model among them: a router is judged beside them (six in speech and diffusion, whose
    tokens have no id that "hash" could read).

    Prints the leaderboard and writes report.html and leaderboard.json. A run that was stopped
    continues: finished cells are kept in the output folder. Exit code 1 when a router named in
    --routers could not be run. JSON: see crossroads.core.arena.leaderboard_schema(); one document
    a task under --task all.
    """
    from crossroads.core.arena import run_arena

    try:
        from crossroads.moe.tasks import candidates
    except ImportError as error:
        if error.name is not None and error.name.startswith("crossroads"):
            raise
        raise MissingExtraError(error.name or "torch", extra="neural") from None
    wanted = comma_separated(routers, "--routers")
    out = arena_folder(out, FAMILY)
    tasks = [_task(each, preset, steps) for each in (TASKS if name == ALL else (name,))]
    if wanted:
        tasks = [replace(task, is_selection=True) for task in tasks]
    chosen = [_checked(wanted, task) if wanted else candidates(task.bed) for task in tasks]
    count = seeds or (FULL_SEEDS if preset == "full" else 1)
    failed = False
    for task, names in zip(tasks, chosen, strict=True):
        folder = out / task.name
        board = run_arena(task, names, seeds=count, out=folder, engine=engine, jobs=jobs)
        if all(row.error is not None for row in board.rows):
            raise InputError(f"no router could be run: {board.rows[0].error}")
        show(task, board, folder, as_json=as_json)
        failed |= any(board[router].error is not None for router in wanted or ())
    if failed:
        click.get_current_context().exit(1)


def _task(name: str, preset: str, steps: int | None) -> MoETask:
    from crossroads.moe.beds import get_bed
    from crossroads.moe.tasks import MoETask

    bed = get_bed(name)
    config = bed.config("full" if preset == "full" else "quick")
    if steps is not None:
        config = replace(
            config,
            steps=steps,
            warmup=min(config.warmup, steps // 10),
            log_every=min(config.log_every, max(steps // 20, 1)),  # a curve needs points
        )
    return MoETask(bed=bed, preset="full" if preset == "full" else "quick", config=config)


def _remedy(router: str, task: MoETask) -> str:
    from crossroads.moe.routers import build_router
    from crossroads.moe.tasks import serves

    if serves(router, causal=task.bed.causal):
        return "choose another --task or another router"
    return f"{build_router(router, 8, 8).remedy}, or choose another --task"


def _checked(routers: list[str], task: MoETask) -> list[str]:
    """Refuse names, settings and routers that do not fit before anything is trained."""
    import torch

    from crossroads.moe.building import DENSE
    from crossroads.moe.routers import parse_router
    from crossroads.moe.tasks import misfit

    for router in routers:
        if router == DENSE:
            continue
        parse_router(router)
        if why := misfit(router, task.bed):
            raise UsageError(f"router {router!r} {why}; {_remedy(router, task)}")
        try:
            with torch.random.fork_rng(devices=[]):
                task.bed.build(task.bed.spec(router))  # sizes that do not fit show only here
        except UsageError as error:
            raise UsageError(f"router {router!r}, task {task.name}: {error}") from error
    return routers
