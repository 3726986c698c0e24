"""A progress bar on stderr for people, nothing in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]  # (items done, items in all)


@contextmanager
def progress_bar(title: str, *, show: bool | None = None) -> Iterator[Progress]:
    """Yield a function that moves the bar; ``show`` defaults to whether stderr is a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        "{task.description}", BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), "left", TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True, force_terminal=True)  # or it would not draw when asked to
    with Bar(*columns, console=console, transient=True) as bar:
        work = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(work, completed=done, total=total)
