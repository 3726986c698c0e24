"""The plots of an arena of expert layers: differences, losses, compute, loads, saturation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossroads.core.arena import Leaderboard, Metric, Row
from crossroads.core.report import Bar, BarPlot, CurvePlot, HeatMap, Plot, Series, role_of

SHOWN_CURVES = 6  # routers drawn at first; the others wait in the legend
REFERENCE = "top2"
LEAST_LIMIT = 25.0  # points: loads that differ less are not painted as if they were far apart


def moe_plots(board: Leaderboard, judged: Metric) -> list[Plot]:
    """Return the plots the board's cells have data for."""
    ran = [row for row in board.rows if row.error is None]
    ran.sort(key=lambda row: row.baseline)  # what is compared first; what it is compared with after
    if not ran:
        return []
    plots: list[Plot] = []
    if len(board.seeds) > 1 and any(row.router == REFERENCE for row in ran):
        plots.append(_against_reference(board, ran, judged))
    plots += [_losses(ran), _compute(ran, judged)]
    routed = [row for row in ran if any(row.cells[0].notes.get("load", {}).values())]
    if routed:
        plots += [_load(routed), _over_time(routed, "saturation"), _over_time(routed, "active")]
    plots += [_by_label(row) for row in routed if "by_label" in row.cells[0].notes][:SHOWN_CURVES]
    return plots


def _against_reference(board: Leaderboard, rows: Sequence[Row], judged: Metric) -> BarPlot:
    bars = []
    for row in rows:
        if row.router == REFERENCE:
            continue
        gap = board.difference(row.router, REFERENCE, judged.name)
        if gap.mean is None:
            continue
        bars.append(
            Bar(name=row.router, value=gap.mean, low=gap.low, high=gap.high, role=role_of(row))
        )
    better = "to the right" if judged.higher_is_better else "to the left"
    return BarPlot(
        title=f"{judged.title}, against {REFERENCE}",
        caption=(
            f"Difference seed by seed, with its 95 % interval; better is {better}. An interval "
            "that holds 0 shows no difference."
        ),
        x_label=f"{judged.title} minus that of {REFERENCE}",
        bars=bars,
        from_zero=False,
    )


def _losses(rows: Sequence[Row]) -> CurvePlot:
    return CurvePlot(
        title="Training loss",
        caption=(
            "Loss of the task without auxiliary terms, mean over seeds; every router sees the same "
            "batches. Names in the legend switch curves on and off."
        ),
        x_label="step",
        y_label="loss",
        series=[_curve(row, "loss", hidden=i >= SHOWN_CURVES) for i, row in enumerate(rows)],
    )


def _compute(rows: Sequence[Row], judged: Metric) -> CurvePlot:
    series = [
        Series(
            name=row.router,
            x=[row.metrics["mflops"].mean or 0.0],
            y=[row.metrics[judged.name].mean or 0.0],
            role=role_of(row),
            line=False,
            marks=True,
        )
        for row in rows
        if "mflops" in row.metrics and row.metrics[judged.name].mean is not None
    ]
    return CurvePlot(
        title="Quality and compute",
        caption=(
            "Operations of the feed-forwards per token, routers included. Arms are sized to be "
            "equal; those further right spend more and must be judged with that in mind."
        ),
        x_label="MFLOP per token",
        y_label=judged.title,
        series=series,
    )


def _load(rows: Sequence[Row]) -> HeatMap:
    """Every layer's load, as a deviation from uniform so that white is balanced."""
    names, values, widest = [], [], 0
    for row in rows:
        for layer, load in row.cells[0].notes["load"].items():
            names.append(f"{layer}: {row.router}")  # what a narrow page cuts off is at the end
            values.append([100 * (share - 1 / len(load)) for share in load])
            widest = max(widest, len(load))
    padded = [[*line, *[None] * (widest - len(line))] for line in values]
    return HeatMap(
        title="Load of the experts",
        caption=(
            "Share of the picks on the probe batch that went to each true expert, in points above "
            "or below an equal share; first seed. Picks of null experts are left out."
        ),
        unit="points",
        rows=names,
        row_label="layer: router",
        columns=[str(e) for e in range(widest)],
        column_label="expert",
        values=padded,
        limit=_strongest(padded),
    )


def _over_time(rows: Sequence[Row], name: str) -> CurvePlot:
    title, caption, label = {
        "saturation": (
            "Saturation",
            "Share of probe tokens that already have the expert they end with, mean over seeds.",
            "share of tokens",
        ),
        "active": (
            "Experts per token in training",
            "Mean number of experts a probe token runs, mean over seeds.",
            "experts",
        ),
    }[name]
    return CurvePlot(
        title=title,
        caption=caption,
        x_label="step",
        y_label=label,
        series=[_curve(row, name, hidden=i >= SHOWN_CURVES) for i, row in enumerate(rows)],
    )


def _by_label(row: Row) -> HeatMap:
    notes = row.cells[0].notes
    table = np.array(notes["by_label"])
    points = [[float(v) for v in line] for line in 100 * (table - table.mean(0))]
    return HeatMap(
        title=f"What {row.router} sends where",
        caption=(
            "Last routed layer, first seed: share of each label's tokens by their first true "
            "expert, in points above or below the expert's mean share over labels."
        ),
        unit="points",
        rows=[str(label) for label in notes["labels"]],
        row_label="label",
        columns=[str(e) for e in range(table.shape[1])],
        column_label="expert",
        values=points,
        limit=_strongest(points),
    )


def _strongest(values: Sequence[Sequence[float | None]]) -> float:
    """Return where a scale of colours ends: at the largest value, or where little is little."""
    return max([LEAST_LIMIT, *(abs(v) for line in values for v in line if v is not None)])


def _curve(row: Row, name: str, *, hidden: bool) -> Series:
    curves = [np.array(cell.curves[name]) for cell in row.cells if name in cell.curves]
    mean = np.mean(curves, axis=0)
    return Series(
        name=row.router,
        x=[float(x) for x in mean[:, 0]],
        y=[float(y) for y in mean[:, 1]],
        role=role_of(row),
        hidden=hidden,
    )
