"""``crossroads arena adapters``: every router over one bank of adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from crossroads.cli.adapters.loading import adapters_folder, neural
from crossroads.cli.arena.showing import arena_folder, show
from crossroads.cli.options import comma_separated
from crossroads.core.errors import InputError, UsageError, unknown_name

if TYPE_CHECKING:
    from crossroads.adapters.tasks import AdaptersTask
    from crossroads.core.arena import Leaderboard

FAMILY = "adapters"
TASKS = ("held-in", "held-out")
ALL = "all"


@click.command("adapters")
@click.option(
    "--task",
    "name",
    type=click.Choice([*TASKS, ALL]),
    default="held-in",
    show_default=True,
    help="Tasks that the experts were trained on (other rows of them), or that none was.",
)
@click.option(
    "--bank",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Experts named after tasks of the collection; those that ship by default.",
)
@click.option(
    "--model",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of their base model; SmolLM2-135M-Instruct by default.",
)
@click.option(
    "--routers",
    metavar="A,B",
    help="As NAME, NAME:setting=value, package.module.Class or saved; all that the bank has data "
    "for. Baselines run along.",
)
@click.option("--tasks", metavar="A,B", help="Some tasks alone; each of its side.")
@click.option(
    "--teach",
    metavar="STEPS",
    type=click.IntRange(0),
    help="Also compare routers that have to learn: teach them on training rows of the experts' "
    "tasks, so many steps; 0 = each router's own number, minutes each.",
)
@click.option(
    "--rows", type=click.IntRange(1), default=8, show_default=True, help="Test rows of every task."
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Paired seeds.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes, 1.5 GB each."
)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="runs/arena-adapters")
@click.option("--json", "as_json", is_flag=True, help="Print the leaderboard as JSON only.")
def command(
    *,
    name: str,
    folder: Path | None,
    model: Path | None,
    routers: str | None,
    tasks: str | None,
    teach: int | None,
    rows: int,
    seeds: int,
    engine: str,
    jobs: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare routers over one bank of adapters, on tasks its experts know or on others.

    The base model, the uniform mix and, held in, the oracle run along. Prints the leaderboard and
    writes report.html and leaderboard.json; the report tells below each name what a router must be
    given. A run that was stopped continues: finished cells are kept in the output folder. Exit code
    1 when a router named in --routers could not be run. Notes of the board name the routers that
    are left out, and why. JSON: see
    crossroads.core.arena.leaderboard_schema(); one document a task under --task all.
    """
    from crossroads.core.arena import run_arena

    folder_of_runs = arena_folder(out, FAMILY)
    with neural():
        from crossroads.adapters.collection.shipped import shipped_folder
        from crossroads.adapters.comparing import candidates, grouped
        from crossroads.adapters.layout import load_bank

        bank = shipped_folder() if folder is None else adapters_folder(folder)
        wanted = comma_separated(routers, "--routers")
        chosen = comma_separated(tasks, "--tasks")
        sides = TASKS if name == ALL else (name,)
        boards = _boards([_task(one, bank, model, rows, teach) for one in sides], chosen)
        names, left_out = list(wanted or ()), dict[str, str]()
        if not names:
            names, left_out = candidates(
                load_bank(bank), bank, boards[0].loaded(), lessons=boards[0].lessons
            )
        boards = [replace(task, remarks=grouped(left_out)) for task in boards]
    failed = False
    for task in boards:
        place = folder_of_runs / task.name
        board = run_arena(task, names, seeds=seeds, out=place, engine=engine, jobs=jobs)
        if all(row.error is not None for row in board.rows):
            raise InputError(f"no router could be run: {board.rows[0].error}")
        show(task, board, place, as_json=as_json)
        if not as_json:
            _show_groups(board)
        failed |= any(board[router].error is not None for router in wanted or ())
    if failed:
        click.get_current_context().exit(1)


def _show_groups(board: Leaderboard) -> None:
    """Say which of the rows are rivals."""
    from crossroads.adapters.needs import GROUPS

    for group, about in GROUPS.items():
        names = [r.router for r in board.rows if r.cells and r.cells[0].notes["group"] == group]
        if names:
            click.echo(f"{group}, {about}: {', '.join(names)}")


def _task(
    name: str, folder: Path, model: Path | None, rows: int, teach: int | None
) -> AdaptersTask:
    from crossroads.adapters.tasks import AdaptersTask

    side: Literal["held_in", "held_out"] = "held_in" if name == "held-in" else "held_out"
    return AdaptersTask(
        folder=folder.resolve(),
        side=side,
        model=model and model.resolve(),
        rows=rows,
        teach=teach,
    )


def _boards(boards: list[AdaptersTask], wanted: list[str] | None) -> list[AdaptersTask]:
    """Return the boards with the tasks that are wanted of their sides; those without one go.

    Raises UsageError for a task of no board, and for a side without tasks that none is wanted of.
    """
    if wanted is None or len(boards) == 1:
        found = [replace(board, tasks=tuple(wanted) if wanted else None) for board in boards]
        for board in found:
            _ = board.task_names  # refuses names of another side
        return found
    known = {board.side: _names(board) for board in boards}
    if not any(known.values()):
        _ = boards[0].task_names  # says why there are none
    for name in wanted:
        if not any(name in names for names in known.values()):
            raise unknown_name("task", name, [name for names in known.values() for name in names])
    own = {side: tuple(name for name in wanted if name in names) for side, names in known.items()}
    return [replace(board, tasks=own[board.side]) for board in boards if own[board.side]]


def _names(board: AdaptersTask) -> tuple[str, ...]:
    try:
        return board.task_names
    except UsageError:  # this side has none
        return ()
