"""The plots of an arena of adapters: gains over the uniform mix, tasks, loss against speed."""

from __future__ import annotations

from collections.abc import Sequence

from crossroads.adapters.comparing import BASE, UNIFORM
from crossroads.core.arena import Leaderboard, Row
from crossroads.core.report import Bar, BarPlot, CurvePlot, HeatMap, Plot, Series, role_of


def adapter_plots(board: Leaderboard, tasks: Sequence[str]) -> list[Plot]:
    """Return the plots the board has data for."""
    ran = [row for row in board.rows if row.error is None]
    plots: list[Plot] = []
    if any(row.router == UNIFORM for row in ran) and len(ran) > 1:
        plots += [_against_uniform(board, ran), _by_task(board, ran, tasks)]
    if any("speed" in row.metrics for row in ran):
        plots.append(_loss_and_speed(ran))
    return plots


def _against_uniform(board: Leaderboard, rows: Sequence[Row]) -> BarPlot:
    bars = []
    for row in rows:
        gap = board.difference(row.router, UNIFORM, "nll")
        if row.router != UNIFORM and gap.mean is not None:
            bars.append(
                Bar(name=row.router, value=gap.mean, low=gap.low, high=gap.high, role=role_of(row))
            )
    return BarPlot(
        title="Loss, against the uniform mix",
        caption=(
            "Difference seed by seed, with its 95 % interval; better is to the left. An interval "
            "that holds 0 shows no difference."
        ),
        x_label="nats a token, minus uniform's",
        bars=bars,
        from_zero=False,
    )


def _by_task(board: Leaderboard, rows: Sequence[Row], tasks: Sequence[str]) -> HeatMap:
    uniform = board[UNIFORM]

    def gain(row: Row, task: str) -> float | None:
        mine, other = (one.metrics.get(f"nll {task}") for one in (row, uniform))
        if mine is None or other is None or mine.mean is None or other.mean is None:
            return None
        return other.mean - mine.mean

    shown = [row for row in rows if row.router != UNIFORM]
    values = [[gain(row, task) for task in tasks] for row in shown]
    sizes = [abs(value) for line in values for value in line if value is not None]
    return HeatMap(
        title="Gain over the uniform mix, by task",
        caption="Nats per answer token less than the uniform mix loses; mean over seeds.",
        unit="nats",
        rows=[row.router for row in shown],
        columns=list(tasks),
        values=values,
        limit=max(sizes, default=1.0) or 1.0,
        row_label="router",
        column_label="task",
    )


def _loss_and_speed(rows: Sequence[Row]) -> CurvePlot:
    series = [
        Series(
            name=row.router,
            x=[1.0 if row.router == BASE else row.metrics["speed"].mean or 0.0],
            y=[row.metrics["nll"].mean or 0.0],
            role=role_of(row),
            line=False,
            marks=True,
        )
        for row in rows
        if row.router == BASE or "speed" in row.metrics
    ]
    return CurvePlot(
        title="Loss and speed",
        caption="Lower right is better. Speed is prompt tokens a second over the base model's.",
        x_label="speed, as a ratio to the base model",
        y_label="nats per answer token",
        series=series,
    )
