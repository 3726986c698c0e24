"""What every process of a test of data-parallel training runs: a module of its own, spawned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crossroads.core.errors import DivergedError, UsageError
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.moe.building import MoESpec
from crossroads.moe.training import TrainConfig, Trained, train
from tests.moe.processes import group
from tests.moe.test_training import Copy

ROUTERS = ("loss-free", "vqmoe:codebook=balanced", "top-p:target=1.5")
CONFIG = TrainConfig(
    steps=3, batch_size=2, micro_batches=4, log_every=1, eval_every=2, checkpoint_every=1, warmup=2
)


class Double(Copy):
    """In double precision, so that the order of additions is all there is to tell apart."""

    def build(self, spec: MoESpec) -> nn.Module:
        return super().build(spec).double()


class Stopped(Double):
    """Stops before its last step."""

    def batch(self, config: TrainConfig, step: int, micro_batch: int) -> Tensor:
        if step == CONFIG.steps - 1:
            raise KeyboardInterrupt
        return super().batch(config, step, micro_batch)


class Breaking(Double):
    """The third micro-batch of the second step is not finite."""

    def loss(
        self, model: nn.Module, batch: Tensor, context: RouteContext
    ) -> tuple[Tensor, ModelOutput]:
        loss, output = super().loss(model, batch, context)
        return loss * (torch.nan if (context.step, context.micro_batch) == (1, 2) else 1.0), output


def spec(router: str) -> MoESpec:
    return MoESpec(router=router, n_experts=4, dense_hidden=16)


def folder_of(folder: Path, router: str) -> Path:
    return folder / router.replace(":", "-")


def same(one: Trained, other: Trained) -> None:
    """Compare two runs up to rounding."""
    state = other.model.state_dict()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-9, atol=1e-9, msg=name)
    assert len(one.history) == len(other.history)
    for row, twin in zip(one.history, other.history, strict=True):
        assert row.keys() == twin.keys()
        for key, value in row.items():
            assert value == pytest.approx(twin[key], rel=1e-9), key


def run(rank: int, world: int, folder: str) -> None:
    """Train with every router, keep the runs, and stop together where one cannot go on."""
    with group(rank, world, folder):
        for router in ROUTERS:
            out = folder_of(Path(folder), router)
            same(train(Double(), spec(router), CONFIG, out=out), alone(router))
        with pytest.raises(KeyboardInterrupt):
            train(Stopped(), spec(ROUTERS[0]), CONFIG, out=Path(folder) / "stopped")
        other = "process 1: " if rank == 0 else ""
        with pytest.raises(DivergedError, match=f"^{other}training copy .* step 1: the loss"):
            train(Breaking(), spec("switch"), CONFIG)
        with pytest.raises(UsageError, match="micro_batches: 3 cannot be divided evenly over 2"):
            train(Double(), spec("switch"), replace(CONFIG, micro_batches=3))


def alone(router: str) -> Trained:
    """Train in this process, whatever group it is in."""
    from crossroads.moe import training
    from crossroads.moe.ranks import Ranks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Ranks, "here", classmethod(lambda cls: Ranks()))
        return train(Double(), spec(router), CONFIG)
