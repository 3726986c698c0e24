from __future__ import annotations

from crossroads.adapters.plots import adapter_plots
from crossroads.adapters.tasks import COMMON, LOSS
from crossroads.core.arena import Cell, Leaderboard, Metric, Row
from crossroads.core.report import BarPlot, CurvePlot, HeatMap
from crossroads.core.statistics import summarise


def _row(name: str, *losses: float, speed: float | None = None) -> Row:
    per_metric = {"nll": losses, "nll new": losses, **({"speed": [speed] * 2} if speed else {})}
    return Row(
        router=name,
        baseline=name == "uniform",
        metrics={metric: summarise(list(values)) for metric, values in per_metric.items()},
        cells=(Cell(metrics={}, fit_seconds=0, decide_seconds=0),),
    )


def _board(*rows: Row) -> Leaderboard:
    extra = Metric(name="nll new", title="new")
    return Leaderboard(
        family="adapters", task="held-in", description="", evidence="", notes=(), seeds=(0, 1),
        metrics=(LOSS, *COMMON, extra), baselines=("uniform",), rows=rows, version="", machine={},
        created="",
    )  # fmt: skip


def test_gains_are_against_the_uniform_mix_seed_by_seed() -> None:
    board = _board(_row("good", 1.0, 2.0, speed=0.5), _row("uniform", 2.0, 3.0, speed=1.0))
    bars, heat, curve = adapter_plots(board, ["new"])
    assert isinstance(bars, BarPlot) and isinstance(heat, HeatMap) and isinstance(curve, CurvePlot)
    assert [(bar.name, bar.value, bar.low, bar.high) for bar in bars.bars] == [
        ("good", -1.0, -1.0, -1.0)
    ]
    assert (heat.rows, heat.columns, heat.values) == (["good"], ["new"], [[1.0]])
    assert [(one.name, one.x, one.y) for one in curve.series] == [
        ("good", [0.5], [1.5]), ("uniform", [1.0], [2.5]),
    ]  # fmt: skip


def test_rows_that_did_not_run_are_not_drawn() -> None:
    failed = Row(router="bad", baseline=False, error="why")
    assert adapter_plots(_board(failed), ["new"]) == []
    assert adapter_plots(_board(failed, _row("uniform", 1.0, 1.0)), ["new"]) == []


def test_the_base_model_is_drawn_at_its_own_speed() -> None:
    board = _board(_row("base", 3.0, 5.0), _row("arrow", 1.0, 1.0, speed=0.5))
    (curve,) = adapter_plots(board, ["new"])
    assert isinstance(curve, CurvePlot)
    assert [(one.name, one.x) for one in curve.series] == [("base", [1.0]), ("arrow", [0.5])]
