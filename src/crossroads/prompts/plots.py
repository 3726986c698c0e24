"""The plots of a prompt arena: frontier, gains, AIQ, breakdowns, calibration, latency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crossroads.core.arena import Cell, Leaderboard, Row
from crossroads.core.preference import hull_quality_at, upper_hull
from crossroads.core.report import Bar, BarPlot, CurvePlot, HeatMap, Plot, Series, role_of

Float64 = npt.NDArray[np.float64]

GRID = 80  # points of a drawn hull
SHOWN_CURVES = 5  # routers drawn at first; the others wait in the legend
BEST_SINGLE = "best-single"
# kind of breakdown in a cell's notes -> title and caption of its heat map
BREAKDOWNS = {
    "domains": (
        "Gain by domain",
        "Points of quality above the best single model in each domain, mean over seeds. "
        "Colours saturate so that one far-off cell does not hide the others.",
    ),
    "difficulties": (
        "Gain by difficulty",
        "Points of quality above the best single model at each difficulty, mean over seeds. Where "
        "the table has no such column, a prompt is easy if at least two thirds of the pool solve "
        "it and hard if at most one third does: known only afterwards, a breakdown and no signal.",
    ),
}
_ORDER = {"easy": -3, "medium": -2, "hard": -1}


def prompt_plots(board: Leaderboard, *, cost_unit: str = "USD") -> list[Plot]:
    """Return the plots the board's cells have data for."""
    cost_axis = f"{cost_unit} per 1,000 prompts"
    ran = [row for row in board.rows if row.error is None]
    plots: list[Plot] = []
    if any("hull" in row.cells[0].curves for row in ran):
        plots += [_frontier(ran, cost_axis), _over_mix(ran, cost_axis)]
    if any(role_of(row) == "router" for row in ran):
        plots.append(_gain(ran))
        if any("aiq" in row.metrics for row in ran):
            plots.append(_aiq(ran))
        plots += [
            _gain_by(ran, kind)
            for kind in BREAKDOWNS
            if any(row.router == BEST_SINGLE and row.cells[0].notes.get(kind) for row in ran)
        ]
        plots.append(_reliability(ran))
    if ran:
        plots.append(_latency(ran))
    return plots


def _frontier(rows: Sequence[Row], cost_axis: str) -> CurvePlot:
    singles = np.mean([cell.curves["singles"] for cell in rows[0].cells], axis=0)
    grid = _grid(singles[:, 0])
    series = [
        Series(
            name=row.router,
            x=list(grid),
            y=list(np.mean([_hull_quality(cell, "hull", grid) for cell in row.cells], axis=0)),
            role=role_of(row),
            hidden=hidden,
        )
        for row, hidden in _drawn(rows, bounds=True)
    ]
    mix = np.mean([_hull_quality(cell, "singles", grid) for cell in rows[0].cells], axis=0)
    series += [
        Series(name="random mix", x=list(grid), y=list(mix), role="reference"),
        Series(
            name="single models",
            x=list(singles[:, 0]),
            y=list(singles[:, 1]),
            role="reference",
            line=False,
            marks=True,
            label=rows[0].cells[0].notes["models"],
        ),
    ]
    series += [_argmax_point(row) for row in rows if role_of(row) == "baseline"]
    return CurvePlot(
        title="Cost and quality",
        caption=(
            "What each router reaches as the weight of cost is swept: hull of the operating "
            "points, mean over seeds, read off the judged prompts' own hull: which trade-off lands "
            "at a budget is known only afterwards. Single models and their random mix are the bar "
            "to clear; bounds decide with hindsight. Names in the legend switch curves on and off."
        ),
        x_label=cost_axis,
        y_label="quality",
        series=series,
        log_x=True,
    )


def _over_mix(rows: Sequence[Row], cost_axis: str) -> CurvePlot:
    """The frontier again, seen from the random mix: here the routers can be told apart."""
    singles = np.mean([cell.curves["singles"] for cell in rows[0].cells], axis=0)
    grid = _grid(singles[:, 0])
    series = []
    for row, hidden in _drawn(rows, bounds=False):
        gaps = [
            _hull_quality(c, "hull", grid) - _hull_quality(c, "singles", grid) for c in row.cells
        ]
        gain = list(100 * np.mean(gaps, axis=0))
        series.append(Series(name=row.router, x=list(grid), y=gain, hidden=hidden))
    series.append(Series(name="random mix", x=list(grid), y=[0.0] * len(grid), role="reference"))
    return CurvePlot(
        title="Gain over a random mix, at every budget",
        caption=(
            "Quality above choosing at random between single models at the same mean cost, mean "
            "over seeds: the height between a router's curve and the dotted line above."
        ),
        x_label=cost_axis,
        y_label="points of quality",
        series=series,
        log_x=True,
    )


def _grid(single_cost: Float64) -> Float64:
    """Budgets from the cheapest to the dearest single model, evenly spaced on a log axis."""
    low, high = float(single_cost.min()), float(single_cost.max())
    return np.geomspace(low, high, GRID) if low > 0 else np.linspace(low, high, GRID)


def _drawn(rows: Sequence[Row], *, bounds: bool) -> list[tuple[Row, bool]]:
    """Return the rows that have a curve, best AIQ first, and whether each waits in the legend."""
    routers = [row for row in rows if role_of(row) == "router"]
    routers.sort(key=lambda row: -(row.metrics["aiq"].mean or 0.0))
    found = [(row, i >= SHOWN_CURVES) for i, row in enumerate(routers)]
    return found + [(row, False) for row in rows if bounds and role_of(row) == "bound"]


def _hull_quality(cell: Cell, curve: str, grid: Float64) -> Float64:
    """Return the hull of a curve's (cost, quality, ...) points on the grid; NaN left of it."""
    cost, quality = np.array(cell.curves[curve]).T[:2]
    return hull_quality_at(upper_hull(cost, quality), grid)


def _argmax_point(row: Row) -> Series:
    cost, quality = row.metrics["cost_per_1k"].mean, row.metrics["quality"].mean
    return Series(
        name=row.router,
        x=[] if cost is None else [cost],
        y=[] if quality is None else [quality],
        role="baseline",
        line=False,
        marks=True,
        label=[row.router],
    )


def _bars(rows: Sequence[Row], metric: str) -> list[Bar]:
    found = []
    for row in rows:
        summary = row.metrics.get(metric)
        if summary is not None and summary.mean is not None:
            found.append(
                Bar(
                    name=row.router,
                    value=summary.mean,
                    low=summary.low,
                    high=summary.high,
                    role=role_of(row),
                )
            )
    return found


def _gain(rows: Sequence[Row]) -> BarPlot:
    bars = [bar for bar in _bars(rows, "gain_over_best_single") if bar.role == "router"]
    return BarPlot(
        title="Gain over the best single model",
        caption=(
            "Quality of the argmax choice above the model that was best in training, with the 95% "
            "interval of the mean over seeds. Below 0 a router does harm."
        ),
        x_label="points of quality",
        bars=sorted(bars, key=lambda bar: -bar.value),
    )


def _aiq(rows: Sequence[Row]) -> BarPlot:
    bars = [bar for bar in _bars(rows, "aiq") if bar.role == "router" or bar.name == BEST_SINGLE]
    return BarPlot(
        title="AIQ: quality over all budgets",
        caption=(
            "Mean quality from the cheapest to the dearest single model's cost, with the 95% "
            "interval of the mean over seeds. The axis does not begin at 0."
        ),
        x_label="AIQ",
        bars=sorted(bars, key=lambda bar: -bar.value),
        from_zero=False,
    )


def _gain_by(rows: Sequence[Row], kind: str) -> HeatMap:
    best = next(row for row in rows if row.router == BEST_SINGLE)
    found = set().union(*(cell.notes[kind] for cell in best.cells))
    columns = sorted(found, key=lambda name: (_ORDER.get(name, 0), name))
    routers = [row for row in rows if role_of(row) == "router"]
    base = _quality_by(best, kind, columns)
    gains = [100 * (_quality_by(row, kind, columns) - base) for row in routers]
    size = np.abs(gains)
    title, caption = BREAKDOWNS[kind]
    return HeatMap(
        title=title,
        caption=caption,
        unit="points",
        rows=[row.router for row in routers],
        columns=columns,
        values=[[float(g) if np.isfinite(g) else None for g in line] for line in gains],
        # The median is 0 where most routers fall back to the best single model.
        limit=max(float(min(np.nanmax(size), 3 * np.nanmedian(size) + 1)), 1e-6),
    )


def _quality_by(row: Row, kind: str, columns: Sequence[str]) -> Float64:
    """Mean over the seeds that judged a prompt of the group; NaN where none did."""
    per_seed = np.array(
        [
            [cell.notes[kind].get(c, {"quality": np.nan})["quality"] for c in columns]
            for cell in row.cells
        ]
    )
    known = np.isfinite(per_seed)
    total = np.where(known, per_seed, 0.0).sum(axis=0)
    counts = known.sum(axis=0)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def _reliability(rows: Sequence[Row]) -> CurvePlot:
    """Mean score against mean estimate of the chosen model, seeds pooled bin by bin."""
    series = []
    routers = [row for row in rows if role_of(row) == "router"]
    for n, row in enumerate(routers):
        estimate, score, count = _pooled_bins(row)
        series.append(
            Series(
                name=row.router,
                x=list(estimate),
                y=list(score),
                marks=True,
                label=[f"{row.router}: {int(c)} prompts" for c in count],
                hidden=n >= SHOWN_CURVES,
            )
        )
    series.append(Series(name="perfect", x=[0.0, 1.0], y=[0.0, 1.0], role="reference"))
    return CurvePlot(
        title="Can the estimates be believed?",
        caption=(
            "Mean score of the chosen model against what the router estimated, prompts in 15 bins "
            "of equal width, seeds pooled; the first routers of the board are drawn. Below the "
            "diagonal a router promises too much. Estimates that are no probabilities are clipped "
            "to [0, 1]."
        ),
        x_label="estimated quality of the chosen model",
        y_label="mean score",
        series=series,
    )


def _pooled_bins(row: Row) -> tuple[Float64, Float64, Float64]:
    """Return (mean estimate, mean score, prompts) of each bin that any seed filled."""
    bins = [np.array(cell.curves["reliability"]) for cell in row.cells]
    points = np.concatenate(bins)
    which = np.minimum((points[:, 0] * 15).astype(int), 14)
    count = np.bincount(which, weights=points[:, 2], minlength=15)
    filled = count > 0
    estimate, score = (
        np.bincount(which, weights=points[:, c] * points[:, 2], minlength=15)[filled]
        / count[filled]
        for c in (0, 1)
    )
    return estimate, score, count[filled].astype(np.float64)


def _latency(rows: Sequence[Row]) -> BarPlot:
    return BarPlot(
        title="Time of one decision",
        caption=(
            "Median, one prompt at a time, one thread, the prompt's features given; encoding the "
            "prompt comes on top and is the same for all."
        ),
        x_label="microseconds (log scale)",
        bars=sorted(
            (bar for bar in _bars(rows, "latency_us_p50") if bar.role != "bound"),
            key=lambda bar: bar.value,
        ),
        from_zero=False,
        log_x=True,
    )
