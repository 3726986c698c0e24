"""The arena of layers of experts: every router trains everywhere it can, on equal terms."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from crossroads.core.arena import run_arena
from crossroads.core.fingerprints import hash_of_sources
from crossroads.core.report import render_report
from crossroads.core.routed import ModelOutput
from crossroads.moe import tasks
from crossroads.moe.beds import get_bed
from crossroads.moe.fingerprints import SOURCES
from crossroads.moe.probing import probe
from crossroads.moe.routers import router_names
from crossroads.moe.tasks import BASELINES, MoETask, candidates, serves
from tests.moe.test_probing import FFN, chosen, record


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


def test_speech_has_no_ids_to_hash_and_says_so() -> None:
    made = MoETask(bed=get_bed("speech"))
    assert set(BASELINES) - set(made.baselines) == {"hash"}
    assert [n for n in made.notes if "baseline hash is left out: it reads the ids" in n]
    assert "hash" in MoETask(bed=get_bed("vision")).baselines


def test_routers_that_nobody_asked_for_are_not_in_the_notes() -> None:
    made = MoETask(bed=get_bed("lm"))
    assert any("later tokens are left out" in note for note in made.notes)
    chosen = replace(made, is_selection=True)
    assert not any("later tokens" in note for note in chosen.notes)
    assert chosen.fingerprint == made.fingerprint


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
    load = made.plots(board)[3]
    layers = len(load.rows) // 2  # of top-p and of top2
    assert len({name[:16] for name in load.rows[:layers]}) == layers  # told apart when cut
    assert load.limit >= max(abs(v) for line in load.values for v in line if v is not None)


def test_saturation_compares_the_end_with_half_way() -> None:
    made = task("vision")
    step = 0

    def routing(done: int) -> ModelOutput:
        """After n of 16 steps the first n tokens have their final expert."""
        picks = record(chosen([[int(n < done)] for n in range(16)]), mask=[True] * 16)
        return ModelOutput(out=torch.zeros(0), records=(picks,))

    class Bed:
        def probe(self, model: nn.Module) -> tuple[ModelOutput, Any]:
            return routing(step), None

    model = nn.Module()
    model.is_routed, model.experts = True, SimpleNamespace(kinds=FFN)
    watch = tasks._Watch(Bed(), replace(made.training, steps=16))
    for step in range(1, 17):
        watch(step, model)
    last = probe(routing(16).records, [FFN])
    assert list(watch.seen) == [2, 4, 6, 8, 10, 12, 14]
    assert watch.half_way(last) == 8 / 16


def test_identity_changes_with_settings_and_code() -> None:
    made = task("vision")
    assert made.identify("top-p") != made.identify("top-p:p=0.3")
    assert made.fingerprint != task("lm").fingerprint


def test_cells_do_not_outlive_the_code_of_layers_kernels_and_backbones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task("vision")
    before = {router: made.identify(router) for router in ("dense", "top-p")}
    monkeypatch.setattr(tasks, "code_fingerprint", lambda: "other code")
    assert all(made.identify(router) != identity for router, identity in before.items())

    sources = [
        "moe/layer.py",
        "moe/routers/top_p.py",
        "models/vit.py",
        "core/dispatch/kernels.c",
        "core/gating.py",
        "core/losses.py",
        "core/routed.py",
    ]
    for name in [*sources, "prompts/router.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before", "utf-8")
    first = hash_of_sources(tmp_path, SOURCES)
    (tmp_path / "prompts/router.py").write_text("after", "utf-8")
    assert hash_of_sources(tmp_path, SOURCES) == first
    for name in sources:
        (tmp_path / name).write_text("after", "utf-8")
        assert hash_of_sources(tmp_path, SOURCES) != first, name
        (tmp_path / name).write_text("before", "utf-8")
