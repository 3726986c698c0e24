"""The leaderboard for people: a table on the terminal, and one HTML file with plots.

The page is self-contained: style, script and the plotting library are inside it, and a content
security policy forbids it to load anything. Its plots are plain data, so that every family of
routers describes its own in a few lines.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from crossroads.core.arena import Leaderboard, Metric, Row
from crossroads.core.files import write_atomically
from crossroads.core.report.fitted import NAME_WIDTH, FittedTable
from crossroads.core.statistics import Summary

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Bar",
    "BarPlot",
    "CurvePlot",
    "HeatMap",
    "Plot",
    "Role",
    "Series",
    "format_figure",
    "group_of",
    "half_shown",
    "leaderboard_table",
    "render_report",
    "role_of",
    "table_names",
    "write_report",
]

FEWEST_SEEDS = 3  # for an interval that says anything: of two seeds it is 13 standard errors wide
POINTS = "points"  # unit of differences between qualities, shown with their sign
Role = Literal["router", "baseline", "bound", "reference"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (x, y) of a curve plot. ``label`` names each point where it is hovered."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    role: Role = "router"
    line: bool = True
    marks: bool = False
    label: Sequence[str] = ()
    hidden: bool = False  # drawn only when its name in the legend is clicked


@dataclass(frozen=True, kw_only=True)
class CurvePlot:
    """Curves and points; ``log_x`` offers a switch to a logarithmic axis."""

    kind: ClassVar[str] = "curves"
    title: str
    caption: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One value with its interval, both ends None where there is none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    role: Role = "router"


@dataclass(frozen=True, kw_only=True)
class BarPlot:
    """Values with intervals, the first at the top.

    ``from_zero`` draws bars; without it dots, on an axis that need not begin at 0. ``log_x`` is
    for dots of several magnitudes.
    """

    kind: ClassVar[str] = "bars"
    title: str
    caption: str
    x_label: str
    bars: Sequence[Bar]
    from_zero: bool = True
    log_x: bool = False


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Values by row and column, coloured around 0; None where there is none.

    ``limit`` is the magnitude of the strongest colour; values beyond it share that colour.
    ``row_label`` and ``column_label`` say what the names along the axes are.
    """

    kind: ClassVar[str] = "heat"
    title: str
    caption: str
    unit: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    limit: float
    row_label: str = ""
    column_label: str = ""


Plot = CurvePlot | BarPlot | HeatMap


def role_of(row: Row) -> Role:
    """Return ``bound`` for a row that decides with hindsight, else ``baseline`` or ``router``."""
    if row.cells and row.cells[0].notes.get("hindsight"):
        return "bound"
    return "baseline" if row.baseline else "router"


def group_of(row: Row) -> str | None:
    """Return which rows are a router's rivals: those of its group. None: all of the board."""
    return row.facts.get("group")


def format_figure(metric: Metric, value: float | None) -> str:
    """Return a figure as text, ``-`` where it is undefined; points of gain carry their sign."""
    if value is None:
        return "-"
    sign = "+" if metric.unit == POINTS else ""
    rounded = round(value, metric.digits) + 0.0  # -0.0 becomes 0.0
    return f"{rounded:{sign},.{metric.digits}f}"


def table_names(board: Leaderboard) -> dict[str, str]:
    """Return every router's name as tables show it: without the module it is imported from.

    Names that would then be the same stay whole.
    """
    names = {}
    for row in board.rows:
        path, colon, settings = row.router.partition(":")
        module, _, cls = path.rpartition(".")
        is_path = all(part.isidentifier() for part in module.split("."))
        names[row.router] = cls + colon + settings if is_path else row.router
    short = list(names.values())
    return {name: shown if short.count(shown) == 1 else name for name, shown in names.items()}


def half_shown(summary: Summary | None) -> float | None:
    """Return half the interval's width where it is worth showing; the JSON has all of them."""
    if summary is None or len(summary.per_seed) < FEWEST_SEEDS:
        return None
    return summary.half_width


def leaderboard_table(board: Leaderboard) -> FittedTable:
    """Return the headline metrics of every row that ran, for a terminal.

    Metrics in points are differences and carry half the width of their interval: there it matters
    whether 0 is inside. A board without any has it on the metric that orders the rows, so that no
    order is read where the seeds show none. Fewer than three seeds show none anywhere. ``*`` marks
    baselines, ``**`` bounds. Long names are folded, never the figures; metrics that no row has are
    left out.
    """
    ran = [row for row in board.rows if row.error is None]
    headline = [metric for metric in board.metrics if metric.headline]
    shown = [m for m in headline if any(row.metrics.get(m.name) is not None for row in ran)]
    shown = shown or headline
    return FittedTable(
        make=lambda count: _table(board, shown[:count]),
        titles=[metric.title for metric in shown],
        names=list(table_names(board).values()),
    )


def _table(board: Leaderboard, shown: Sequence[Metric]) -> Table:
    from rich import box
    from rich.table import Table

    spread = {m.name for m in shown if m.unit == POINTS} or {shown[0].name}
    bounded = any(role_of(row) == "bound" for row in board.rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        caption="* baseline"
        + ("   ** bound: decides with hindsight" if bounded else "")
        + ("\nno intervals below 3 seeds" if len(board.seeds) == 2 else ""),
        caption_justify="left",
    )
    table.add_column("router", overflow="fold", min_width=NAME_WIDTH)
    for metric in shown:
        table.add_column(f"{metric.title}\n{metric.unit}", justify="right", no_wrap=True)
    names = table_names(board)
    marks: Mapping[Role, str] = {"router": "", "baseline": " *", "bound": " **"}
    for row in board.rows:
        role = role_of(row)
        if row.error is None:
            figures = [
                _cell_text(m, row.metrics.get(m.name), spread=m.name in spread) for m in shown
            ]
            style = "" if role == "router" else "dim"
            table.add_row(names[row.router] + marks[role], *figures, style=style)
    return table


def _cell_text(metric: Metric, summary: Summary | None, *, spread: bool) -> str:
    if summary is None:
        return "-"
    text = format_figure(metric, summary.mean)
    half = half_shown(summary)
    if spread and half is not None:
        text += f" +-{half:.{metric.digits}f}"
    return text


def write_report(
    board: Leaderboard, folder: str | Path, *, plots: Sequence[Plot] = ()
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``leaderboard.json`` and return their paths.

    Raises InputError when the folder cannot be written.
    """
    page, figures = Path(folder) / "report.html", Path(folder) / "leaderboard.json"
    write_atomically(figures, board.to_json())
    write_atomically(page, render_report(board, plots))
    return page, figures


def render_report(board: Leaderboard, plots: Sequence[Plot]) -> str:
    """Return the report as one HTML document of about 2 MB, most of it the plotting library."""
    from jinja2 import Environment, StrictUndefined

    here = resources.files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(here.joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        board=board,
        rows=[_row_for_page(board, row) for row in board.rows],
        failed=[row for row in board.rows if row.error is not None],
        winners=_winners(board),
        plots=[{"kind": plot.kind, "title": plot.title, "caption": plot.caption} for plot in plots],
        plot_data=_script_json([{"kind": plot.kind, **asdict(plot)} for plot in plots]),
        style=here.joinpath("report.css").read_text("utf-8"),
        script=here.joinpath("report.js").read_text("utf-8"),
        library=_plotting_library(),
    )


@cache
def _plotting_library() -> str:
    """Return Plotly's script, compressed, in base64; the same bytes every time."""
    script = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, mtime=0)).decode()


def _row_for_page(board: Leaderboard, row: Row) -> dict[str, Any]:
    figures: list[dict[str, Any]] = []
    for metric in board.metrics:
        summary = row.metrics.get(metric.name)
        mean = None if summary is None else summary.mean
        half = half_shown(summary)
        figures.append(
            {
                "text": format_figure(metric, mean),
                "half": None if half is None else f"{half:,.{metric.digits}f}",
                "value": mean,
                "headline": metric.headline,
                "best": mean is not None and mean == _best_mean(board, metric, group_of(row)),
            }
        )
    told = row.cells[0].notes.get("told") if row.cells else None
    role = role_of(row)
    return {
        "router": row.router,
        "name": table_names(board)[row.router],
        "role": role,
        "told": told,
        "axes": {k.replace("_", " "): v for k, v in (row.facts.get("axes") or {}).items()},
        "group": group_of(row),
        "error": row.error,
        "figures": figures,
    }


def _best_mean(board: Leaderboard, metric: Metric, group: str | None) -> float | None:
    """The best figure among a group's routers, None where fewer than two compete or none can win.

    Baselines and bounds do not compete.
    """
    means = [
        mean
        for row in board.rows
        if role_of(row) == "router"
        and group_of(row) == group
        and metric.name in row.metrics
        and (mean := row.metrics[metric.name].mean) is not None
    ]
    if len(means) < 2 or metric.higher_is_better is None:
        return None
    return max(means) if metric.higher_is_better else min(means)


def _winners(board: Leaderboard) -> list[dict[str, Any]]:
    """The first router of every group of rivals with its headline figures, in the board's order.

    ``ahead`` names the baselines that stand above it: the best router need not be worth its keep.
    """
    ahead: list[str] = []
    found: dict[str | None, dict[str, Any]] = {}
    for row in board.rows:
        if row.error is not None:
            continue
        if role_of(row) == "baseline":
            ahead.append(row.router)
        if role_of(row) == "router" and group_of(row) not in found:
            page_row = _row_for_page(board, row)
            page_row["ahead"] = list(ahead)
            pairs = zip(board.metrics, page_row["figures"], strict=True)
            page_row["tiles"] = [(metric, figure) for metric, figure in pairs if metric.headline]
            found[group_of(row)] = page_row
    return list(found.values())


def _script_json(data: Any) -> str:
    """Return JSON that cannot end the script element it stands in; non-finite numbers as null."""
    return json.dumps(_finite(data), allow_nan=False).replace("<", "\\u003c")


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data
