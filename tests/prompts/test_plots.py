"""The plots of a prompt arena hold what they claim, on tables of every kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossroads.core.arena import Leaderboard, run_arena
from crossroads.core.report import BarPlot, CurvePlot, HeatMap, Plot, render_report
from crossroads.prompts import tasks
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.plots import SHOWN_CURVES, prompt_plots
from crossroads.prompts.tasks import PromptTask
from tests.prompts.toy_routers import build_toy, make_table, random_table


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "build_router", build_toy)


def board_of(table: OutcomeTable, *routers: str, seeds: int = 2) -> Leaderboard:
    return run_arena(PromptTask(table=table), routers, seeds=seeds, jobs=1)


def titled(plots: list[Plot], title: str) -> Plot:
    return next(plot for plot in plots if plot.title == title)


def test_the_frontier_shows_bounds_singles_mix_and_baselines() -> None:
    plot = titled(prompt_plots(board_of(random_table(), "last")), "Cost and quality")
    assert isinstance(plot, CurvePlot)
    roles = {series.name: series.role for series in plot.series}
    assert roles == {
        "last": "router", "oracle": "bound", "oracle-chance-aware": "bound",
        "random mix": "reference", "single models": "reference",
        "best-single": "baseline", "cheapest": "baseline", "random": "baseline",
    }  # fmt: skip
    singles = next(series for series in plot.series if series.name == "single models")
    assert list(singles.label) == ["a", "b", "c"]


def test_the_axis_says_what_costs_count_and_the_caption_whose_hull_it_is() -> None:
    task = PromptTask(table=replace(random_table(), cost_unit="strong calls"))
    plots = task.plots(run_arena(task, ["last"], seeds=1, jobs=1))
    curves = [plot for plot in plots if isinstance(plot, CurvePlot)]
    assert [plot.x_label for plot in curves] == [
        "strong calls per 1,000 prompts",
        "strong calls per 1,000 prompts",
        "estimated quality of the chosen model",
    ]
    assert "read off the judged prompts' own hull" in curves[0].caption
    in_dollars = titled(prompt_plots(board_of(random_table(), "last")), "Cost and quality")
    assert isinstance(in_dollars, CurvePlot)
    assert in_dollars.x_label == "USD per 1,000 prompts"


def test_curves_beyond_the_first_wait_in_the_legend() -> None:
    routers = [f"last:margin={i}" for i in range(1, SHOWN_CURVES + 3)]
    plot = titled(prompt_plots(board_of(random_table(), *routers)), "Cost and quality")
    assert isinstance(plot, CurvePlot)
    hidden = [series for series in plot.series if series.hidden]
    assert len(hidden) == 2


def test_a_router_that_mixes_nothing_gains_nothing_over_the_mix() -> None:
    plots = prompt_plots(board_of(random_table(n=2000), "last"))
    plot = titled(plots, "Gain over a random mix, at every budget")
    assert isinstance(plot, CurvePlot)
    gains = np.array(plot.series[0].y)
    # Constant estimates sweep single models only, so no budget can be used better than by a mix.
    assert np.nanmax(gains) <= 1e-9


def test_gains_leave_out_what_is_no_candidate_and_are_sorted() -> None:
    plot = titled(
        prompt_plots(board_of(random_table(), "last", "best-single")),
        "Gain over the best single model",
    )
    assert isinstance(plot, BarPlot)
    assert [bar.name for bar in plot.bars] == ["last"]
    assert plot.bars[0].low is not None


def test_one_seed_draws_no_interval() -> None:
    plot = titled(prompt_plots(board_of(random_table(), "last", seeds=1)), "Time of one decision")
    assert isinstance(plot, BarPlot)
    assert all(bar.low is None for bar in plot.bars)
    assert [bar.value for bar in plot.bars] == sorted(bar.value for bar in plot.bars)


def test_domains_are_measured_from_the_best_single_model() -> None:
    scores = [[1, 0], [1, 0.2], [1, 0], [0, 1]]
    table = make_table(
        scores, split=["train", "train", "test", "test"], domains=["x", "y", "x", "y"]
    )
    plot = titled(prompt_plots(board_of(table, "last", seeds=1)), "Gain by domain")
    assert isinstance(plot, HeatMap)
    assert (list(plot.rows), list(plot.columns)) == (["last"], ["x", "y"])
    assert plot.values == [[-100.0, 100.0]]
    assert plot.limit == 100


@pytest.mark.parametrize(
    "table",
    [
        make_table([[1, 0]] * 4, [[0, 0]] * 4, split=["train", "train", "test", "test"]),
        make_table([[1, 0]] * 4, split=["train", "train", "test", "test"]),
        make_table([[1], [0], [1], [1]], [[1]] * 4, split=["train", "train", "test", "test"]),
        make_table([[1, 1]] * 4, [[1, 2]] * 4, split=["train", "train", "test", "test"],
                   domains=["x"] * 4),
    ],
    ids=["free", "unpriced", "one model", "constant"],
)  # fmt: skip
def test_degenerate_tables_have_a_report_too(table: OutcomeTable) -> None:
    board = board_of(table, "last", seeds=1)
    plots = prompt_plots(board)
    assert plots
    assert "<!doctype html>" in render_report(board, plots)


def test_a_board_where_everything_failed_has_no_plots() -> None:
    table = make_table([[1, 0], [1, float("nan")]], split=["train", "test"])
    board = board_of(table, "last", seeds=1)
    assert all(row.error for row in board.rows)
    assert prompt_plots(board) == []
