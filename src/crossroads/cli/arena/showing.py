"""A leaderboard on the terminal, and its report on disk: the same for every family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossroads.core.files import check_folder

if TYPE_CHECKING:
    from crossroads.core.arena import Leaderboard, Task


def arena_folder(out: Path | None, family: str) -> Path:
    """Return where an arena's results go. Raises InputError where nothing can be written there."""
    folder = out or Path("runs") / f"arena-{family}"
    check_folder(folder)
    return folder


def show(task: Task, board: Leaderboard, folder: Path, *, as_json: bool) -> None:
    """Write the report into ``folder`` and print the board, as JSON only or for people."""
    from crossroads.core.report import leaderboard_table, write_report

    report, figures = write_report(board, folder, plots=task.plots(board))
    if as_json:
        click.echo(board.to_json(), nl=False)
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(f"{board.task} ({board.evidence})", style="bold")
    console.print(board.description, soft_wrap=True)
    console.print(leaderboard_table(board))
    for row in board.rows:
        if row.error is not None:
            click.echo(f"{row.router} did not run: {row.error}", err=True)
    for note in board.notes:
        click.echo(f"note: {note}")
    if board.reused:
        click.echo(f"{board.reused} cells of an earlier run in {folder / 'cells'} were used again")
    click.echo(f"report  {report}\nfigures {figures}")
