"""The arena of layers of experts: every router trains everywhere it can, on equal terms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from crossroads.core.arena import run_arena
from crossroads.core.report import render_report
from crossroads.moe.beds import get_bed
from crossroads.moe.routers import router_names
from crossroads.moe.tasks import BASELINES, MoETask, candidates, serves


def task(name: str) -> MoETask:
    bed = get_bed(name)
    config = replace(bed.config("quick"), steps=2, batch_size=4, warmup=0)
    return MoETask(bed=bed, config=config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vision", "lm"])
def test_every_router_trains_in_the_backbone(name: str) -> None:
    made = task(name)
    dense = made.run("dense", 0).metrics["mflops"]
    for router in candidates(made.bed):
        cell = made.run(router, 0)
        headline = made.bed.metrics[0].name
        assert math.isfinite(cell.metrics[headline]), router
        assert cell.metrics["active_experts"] > 0, router
        if cell.metrics["active_experts"] <= 2.2:
            # Equal compute, the router's own and a choice of more than two experts apart.
            assert 0.6 < cell.metrics["mflops"] / dense < 1.25, router


def test_all_routers_are_candidates_or_baselines() -> None:
    for name in ("vision", "lm"):
        bed = get_bed(name)
        plain = {router.split(":")[0] for router in candidates(bed)} | set(BASELINES) - {"dense"}
        looking_ahead = {n for n in router_names() if not serves(n, causal=bed.causal)}
        assert plain == set(router_names()) - (looking_ahead - {"da-moe"})


def test_same_seed_same_figures() -> None:
    made = task("vision")
    first, second = (made.run("softmax-tc", 1) for _ in range(2))
    for name in ("accuracy", "nll", "load_cv", "entropy"):
        assert first.metrics[name] == second.metrics[name]
    assert first.curves["loss"] == second.curves["loss"]


def test_arena_keeps_cells_and_reports_loads_and_curves(tmp_path: object) -> None:
    made = replace(task("vision"), baselines=("dense", "top2"))
    board = run_arena(made, ["top-p"], seeds=2, out=str(tmp_path), jobs=1)
    assert [row.error for row in board.rows] == [None] * 3
    again = run_arena(made, ["top-p"], seeds=2, out=str(tmp_path), jobs=1)
    assert again.reused == 6
    titles = [plot.title for plot in made.plots(board)]
    assert titles[:4] == [
        "Accuracy, against top2",
        "Training loss",
        "Quality and compute",
        "Load of the experts",
    ]
    loss = made.plots(board)[1]
    assert loss.series[0].name == "top-p"  # before the baselines
    page = render_report(board, made.plots(board))
    assert "What top-p sends where" in page


def test_identity_changes_with_settings_and_code() -> None:
    made = task("vision")
    assert made.identify("top-p") != made.identify("top-p:p=0.3")
    assert made.fingerprint != task("lm").fingerprint
