"""A model leaves the pool and comes back: what is fitted, on what, and how it is told."""

from __future__ import annotations

import numpy as np
import pytest

from crossroads.core.arena import run_arena
from crossroads.core.errors import UsageError
from crossroads.core.report import CurvePlot
from crossroads.prompts.pool_change import EXAMPLES, PoolChangeTask
from crossroads.prompts.tasks import PromptTask
from tests.prompts.toy_routers import make_table, random_table


def task(n: int = 400, newcomer: str | None = None) -> PoolChangeTask:
    return PoolChangeTask(base=PromptTask(table=random_table(n=n)), newcomer=newcomer)


def test_without_the_best_model_best_single_is_the_next_one() -> None:
    scores = [[0, 0.5, 1]] * 10
    table = make_table(scores, split=["train"] * 6 + ["test"] * 4)
    cell = PoolChangeTask(base=PromptTask(table=table)).run("best-single", 0)
    assert cell.notes["newcomer"] == "c"
    assert cell.metrics["quality_without"] == 0.5
    assert cell.metrics["quality_full"] == 1
    assert cell.metrics["gain_without"] == 0
    assert [point[0] for point in cell.curves["added"]] == [0, 6]  # 30 outcomes there are not


def test_the_named_model_leaves_and_the_oracle_never_gains_by_it() -> None:
    cell = task(newcomer="a").run("oracle", 0)
    assert cell.notes["newcomer"] == "a"
    assert cell.metrics["quality_without"] < cell.metrics["quality_full"]
    assert cell.metrics["shortfall_few"] == 0
    assert [point[0] for point in cell.curves["added"][1:-1]] == [
        n for n in EXAMPLES if n < cell.curves["added"][-1][0]
    ]


def test_all_routers_meet_the_same_outcomes_of_the_newcomer() -> None:
    first, second = (task().run("best-single", 3) for _ in range(2))
    assert first.curves == second.curves
    assert first.curves != task().run("best-single", 4).curves


def test_an_unknown_newcomer_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="unknown model 'z'"):
        task(newcomer="z")


def test_the_board_has_every_metric_and_the_curve() -> None:
    board = run_arena(task(), ["ridge"], seeds=2, jobs=1)
    for row in board.rows:
        assert set(row.metrics) == {metric.name for metric in board.metrics}
    (plot,) = task().plots(board)
    assert isinstance(plot, CurvePlot)
    ridge = next(series for series in plot.series if series.name == "ridge")
    assert ridge.x[0] == 10  # a logarithmic axis has no 0
    assert ridge.y[-1] == pytest.approx(board["ridge"].metrics["quality_full"].mean)
    assert np.isfinite(ridge.y).all()


def test_another_newcomer_is_another_task() -> None:
    prints = {task(newcomer=name).fingerprint for name in (None, "a", "b")}
    assert len(prints) == 3
