"""Tables of names and figures for terminals of any width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

NAME_WIDTH = 12  # columns that names keep; longer ones fold


@dataclass(frozen=True)
class FittedTable:
    """A table that leaves out its last columns, and says so, where the terminal is too narrow.

    Attributes
    ----------
    make : the table with so many columns of figures, whose names fold to ``NAME_WIDTH``
    titles : of all columns of figures
    names : what may fold
    """

    make: Callable[[int], Table]
    titles: Sequence[str]
    names: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement
        from rich.text import Text

        unbounded = options.update(max_width=10_000)
        foldable = max((len(name) for name in self.names), default=0) - NAME_WIDTH
        for count in range(len(self.titles), 0, -1):
            table = self.make(count)
            wide = Measurement.get(console, unbounded, table).maximum - max(0, foldable)
            if wide <= options.max_width or count == 1:
                yield table
                break
        if missing := self.titles[count:]:
            yield Text(f"no room for {', '.join(missing)}: take a wider terminal")
