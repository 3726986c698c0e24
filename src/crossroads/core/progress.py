"""Progress on stderr: a bar on a terminal, elsewhere a line now and then of what takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]  # (items done, items in all)
_EVERY_S = 60.0  # a line off a terminal, the first one after as long


@contextmanager
def progress_bar(title: str, *, show: bool | None = None) -> Iterator[Progress]:
    """Yield a function that says how far the work is.

    ``show``: True draws the bar, False says nothing; None draws it on a terminal, and writes a line
    every minute elsewhere.
    """
    if show is None and not sys.stderr.isatty():
        yield _lines(title)
        return
    if show is False:
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


def _lines(title: str) -> Progress:
    started = last = time.monotonic()

    def moved(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY_S:
            last = now
            sys.stderr.write(f"{title}: {done} of {total}, {now - started:.0f} s\n")
            sys.stderr.flush()

    return moved
