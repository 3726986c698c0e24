"""What the log of a run says of routing: the arena's figures, at the logged steps alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crossroads.core.routed import LayerRecord, ModelOutput, RouteContext, routed_layers
from crossroads.moe import training
from crossroads.moe.beds.vision import VisionBed
from crossroads.moe.building import DENSE, MoESpec
from crossroads.moe.contract import Dense, RoutingDecision, TokenChoice
from crossroads.moe.logs import routing_figures
from crossroads.moe.probing import figures, probe
from crossroads.moe.routers import router_names
from crossroads.moe.training import TrainConfig, train
from tests.moe.test_training import CONFIG, SPEC, Copy, weights

NAMES = {"entropy", "margin", "load_cv", "dead_experts", "dropped", "active_experts"}
UNSURE = {"entropy", "margin"}  # what routers without probabilities lack


@dataclass(frozen=True, kw_only=True)
class Remembering(VisionBed):
    """Keeps the answers of training passes."""

    seen: list[ModelOutput] = field(default_factory=list, compare=False)

    def loss(
        self, model: nn.Module, batch: Any, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        loss, output = super().loss(model, batch, context)
        if context.training:
            self.seen.append(output)
        return loss, output


def record(layer: int, *decisions: RoutingDecision) -> LayerRecord:
    return LayerRecord(layer=layer, decisions=decisions, aux={}, new_state={}, flops=0.0)


def decided(idx: list[list[int]], **more: Any) -> RoutingDecision:
    choice = TokenChoice(
        idx_NK=torch.tensor(idx),
        w_NK=torch.ones(len(idx), len(idx[0]), requires_grad=True),
        dropped_NK=more.pop("dropped", None),
    )
    mask_N = torch.ones(len(idx), dtype=torch.bool)
    return RoutingDecision(choice=choice, n_experts=4, shape=(1, len(idx)), mask_N=mask_N, **more)


def test_figures_are_means_over_layers_and_leave_null_experts_out() -> None:
    probs_NE = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]], requires_grad=True)
    lost = torch.tensor([[False, True], [False, False]])
    sure = decided([[0, 1], [0, 3]], probs_NE=probs_NE, dropped=lost)
    plain = decided([[0, 1], [2, 3]])
    output = ModelOutput(out=torch.zeros(1), records=(record(0, sure), record(2, plain)))
    nulls = ("ffn", "ffn", "ffn", "null")
    assert routing_figures(output, {0: nulls, 2: ("ffn",) * 4}) == {
        "entropy": pytest.approx(1.5 * np.log(2) / 2, abs=1e-6),  # of the one layer that has some
        "margin": pytest.approx((0.25 + 1) / 2),
        "load_cv": pytest.approx(np.std([2, 1, 0]) / 2, abs=1e-6),  # loads 2/3, 1/3, 0; and equal
        "dead_experts": 0.5,
        "dropped": 1 / 8,
        "active_experts": (1.0 + 2.0) / 2,  # token 0 lost one, token 1 picked a null one
    }


def test_every_iteration_of_a_chain_counts() -> None:
    output = ModelOutput(
        out=torch.zeros(1), records=(record(0, decided([[0], [1]]), decided([[2], [2]])),)
    )
    found = routing_figures(output, {0: ("ffn",) * 4})
    assert found["dead_experts"] == (2 + 3) / 2
    assert not found.keys() & UNSURE
    done = train(Copy(), replace(SPEC, n_iter=2), replace(CONFIG, steps=1))
    assert done.history[0].keys() >= NAMES


def test_a_mixture_of_all_tokens_has_loads_and_every_expert() -> None:
    combine = torch.tensor([[[0.75, 0.25], [0.25, 0.75]]], requires_grad=True).unsqueeze(-1)
    mixed = RoutingDecision(
        choice=Dense(dispatch_GSEC=combine, combine_GSEC=combine),
        n_experts=2,
        shape=(1, 2),
        mask_N=torch.ones(2, dtype=torch.bool),
    )
    output = ModelOutput(out=torch.zeros(1), records=(record(0, mixed),))
    assert routing_figures(output, {0: ("ffn", "ffn")}) == {
        "load_cv": 0.0,
        "dead_experts": 0.0,
        "dropped": 0.0,
        "active_experts": 2.0,
    }


@pytest.mark.parametrize("router", router_names())
def test_every_router_logs_the_figures_of_the_arena(router: str) -> None:
    bed = Remembering(num_layers=2)
    config = TrainConfig(steps=2, batch_size=4, micro_batches=2, log_every=2)
    done = train(bed, bed.spec(router), config, progress=False)
    kinds = [layer.experts.kinds for layer in routed_layers(done.model)]
    for row, output in zip(done.history, bed.seen[1::2], strict=True):  # the last micro-batches
        expected = figures(probe(output.records, kinds))
        is_sure = output.records[0].decisions[0].probs_NE is not None
        assert row.keys() & NAMES == (NAMES if is_sure else NAMES - UNSURE)
        for name in row.keys() & NAMES & expected.keys():
            assert row[name] == pytest.approx(expected[name], abs=1e-6), name
        assert 0 <= row["dead_experts"] < len(kinds[0])
        json.dumps(row, allow_nan=False)


def test_dense_models_have_none() -> None:
    done = train(Copy(), MoESpec(router=DENSE, dense_hidden=16), replace(CONFIG, steps=1))
    assert done.history[0].keys() == {"step", "loss", "aux", "norm"}


@pytest.mark.parametrize("router", ["switch:noise_std=0.1", "loss-free", "random"])
def test_the_figures_are_made_when_logged_and_change_no_weight(
    router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def counted(*arguments: Any) -> dict[str, float]:
        made.append(torch.is_grad_enabled())
        return routing_figures(*arguments)

    spec = replace(SPEC, router=router)
    monkeypatch.setattr(training, "routing_figures", counted)
    often = train(Copy(), spec, replace(CONFIG, log_every=1, eval_every=2))
    assert len(made) == CONFIG.steps
    seldom = train(Copy(), spec, replace(CONFIG, log_every=4, eval_every=2))
    assert len(made) == CONFIG.steps + 3  # the first, the fourth, the last
    monkeypatch.setattr(training, "routing_figures", lambda *_: {})
    without = train(Copy(), spec, replace(CONFIG, log_every=1, eval_every=2))
    for other in (seldom, without):
        for first, second in zip(weights(often.model), weights(other.model), strict=True):
            assert torch.equal(first, second)


def test_mixed_precision_logs_them_too() -> None:
    done = train(Copy(), SPEC, replace(CONFIG, steps=2, dtype="bfloat16"))
    assert all(row.keys() >= NAMES for row in done.history)


def test_a_log_without_the_figures_is_continued(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_every=2)

    def stop(step: int, model: nn.Module) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Copy(), SPEC, config, out=tmp_path, watch=stop)
    path = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    old = [{k: v for k, v in row.items() if k not in NAMES} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in old), "utf-8")
    done = train(Copy(), SPEC, config, out=tmp_path)
    assert [row.keys() >= NAMES for row in done.history] == [False] * 4 + [True] * 2
    logged = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert logged == list(done.history)


@pytest.mark.slow
def test_training_waits_for_no_statistics_library() -> None:
    code = "import sys, crossroads.moe.training; assert not {'scipy', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
