"""A task of no substance, for tests of the arena: it logs each run and does as its router says."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from crossroads.core.arena import Cell, Leaderboard, Metric
from crossroads.core.errors import InputError, unknown_name
from crossroads.core.report import Bar, BarPlot, CurvePlot, HeatMap, Plot, Series

ROUTERS = ("steady", "better", "base", "bound", "refused", "broken", "sometimes", "slow", "never")


@dataclass(frozen=True, kw_only=True)
class ToyTask:
    log: Path | None = None
    fingerprint: str = "f00d"
    metrics: tuple[Metric, ...] = (
        Metric(name="quality", title="quality", digits=4, help="how good"),
        Metric(name="gain", title="gain", unit="points", digits=2),
        Metric(name="cost", title="cost", unit="USD", higher_is_better=False, headline=False),
    )
    baselines: tuple[str, ...] = ("base",)
    notes: tuple[str, ...] = ("toys are not data",)

    name = "toy"
    family = "toys"
    description = "nothing is routed"
    evidence = "simulated"

    def identify(self, router: str) -> str:
        if router not in ROUTERS:
            raise unknown_name("router", router, ROUTERS)
        return f"{router} v{os.environ.get('TOY_VERSION', '1')}"

    def run(self, router: str, seed: int) -> Cell:
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{router} {seed}\n")
        if router == "refused" or (router == "sometimes" and seed == 1):
            raise InputError(f"{router} does not\nlike this table")
        if router == "broken":
            raise ZeroDivisionError("a defect")
        if router == "slow":
            time.sleep(0.3)
        level = {"better": 0.8, "base": 0.2, "bound": 0.9}.get(router, 0.5)
        quality = level + 0.01 * seed
        cost = float("inf") if router == "never" else 1.0 + seed
        return Cell(
            metrics={"quality": quality, "gain": 100 * (level - 0.5), "cost": cost},
            fit_seconds=0.5,
            decide_seconds=0.001,
            curves={"line": [[1.0, level], [2.0, quality]]},
            notes={"hindsight": router == "bound"},
        )

    def plots(self, board: Leaderboard) -> list[Plot]:
        """One plot of each kind."""
        ran = [row for row in board.rows if row.error is None]
        series = [Series(name=row.router, x=[1.0, 10.0], y=[0.1, float("nan")]) for row in ran]
        bars = [Bar(name=row.router, value=0.5, low=0.4, high=0.6) for row in ran]
        names = [row.router for row in ran]
        return [
            CurvePlot(
                title="Curves", caption="c", x_label="x", y_label="y", series=series, log_x=True
            ),
            BarPlot(title="Bars", caption="b", x_label="x", bars=bars),
            BarPlot(title="Dots", caption="d", x_label="x", bars=bars, from_zero=False, log_x=True),
            HeatMap(
                title="Heat",
                caption="h",
                unit="points",
                rows=names,
                columns=["<b>algebra</b>", "law"],
                values=[[1.0, None] for _ in names],
                limit=2.0,
            ),
        ]
