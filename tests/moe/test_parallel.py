"""Experts over several processes equal the single process, forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossroads.core.errors import InputError, UsageError
from crossroads.moe.parallel import average_gradients, shard_model
from crossroads.moe.sharded import load_sharded, save_sharded
from tests.moe import parallel_worker as worker
from tests.moe.processes import spawn


def spawned(world: int, folder: Path, *names: str) -> None:
    spawn(world, worker.run, str(folder), names)


@pytest.mark.slow
def test_two_and_four_ranks_equal_one_process_and_share_checkpoints(tmp_path: Path) -> None:
    spawned(
        4,
        tmp_path,
        "equals_one_process",
        "equals_one_process_on_two_meshes",
        "waits_for_nobody",
        "commits_alike",
        "refuses",
        "saves",
        "loads",
    )
    spawned(2, tmp_path, "equals_one_process", "loads")
    layer = worker.zeroed(worker.build("loss-free"))
    load_sharded(layer, tmp_path / "checkpoint")
    worker.equal_states(layer, worker.build("loss-free"))


def test_what_needs_ranks_says_so_where_there_are_none() -> None:
    layer = worker.build("top2")
    with pytest.raises(UsageError, match="mesh: expected a DeviceMesh, got None"):
        shard_model(layer, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no routed layers"):
        shard_model(torch.nn.Linear(2, 2), None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="init_process_group first"):
        average_gradients(layer)


def test_one_process_saves_and_loads_without_a_group(tmp_path: Path) -> None:
    layer = worker.build("top2")
    save_sharded(layer, str(tmp_path / "one"))
    other = worker.build("top2")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    load_sharded(other, str(tmp_path / "one"))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    with pytest.raises(InputError, match="exists already"):
        save_sharded(layer, tmp_path / "one")
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_sharded(layer, tmp_path / "none")
    with pytest.raises(InputError, match="build the model with the settings"):
        load_sharded(worker.build("top2", n_experts=4), tmp_path / "one")
