"""Experts over several processes equal the single process, forward and backward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crossroads.core.errors import InputError, UsageError
from crossroads.moe.parallel import average_gradients, shard_model
from crossroads.moe.sharded import load_sharded, save_sharded
from tests.moe import parallel_routers
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
    spawned(
        2,
        tmp_path,
        "equals_one_process",
        "autocasts_like_one_process",
        "penalises_like_one_process",
        "loads",
        "saves_optimiser",
        "continues",
    )
    layer = worker.zeroed(worker.build("loss-free"))
    load_sharded(layer, tmp_path / "checkpoint")
    worker.equal_states(layer, worker.build("loss-free"))
    worker.continues(0, 1, None, tmp_path)
    spawned(4, tmp_path, "continues")


@pytest.mark.slow
def test_two_ranks_equal_one_process_whatever_the_router(tmp_path: Path) -> None:
    spawn(2, parallel_routers.work, str(tmp_path))


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
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/two: cannot be written: .*choose") as refused:
        save_sharded(layer, tmp_path / "file" / "two")
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_sharded(layer, tmp_path / "none")
    with pytest.raises(InputError, match="build the model with the settings"):
        load_sharded(worker.build("top2", n_experts=4), tmp_path / "one")


def test_a_checkpoint_holds_what_is_no_tensor_and_forgets_what_was_kept(tmp_path: Path) -> None:
    layer = worker.build("hyper")
    layer.router.k_eval = 3
    with torch.no_grad():
        layer.router.second_weight.normal_()
    save_sharded(layer, tmp_path / "hyper")
    other, x_BTD = worker.build("hyper"), torch.randn(1, 3, worker.WIDTH)
    with torch.no_grad():
        other(x_BTD)  # writes a gate, and keeps it for the next evaluation
        load_sharded(other, tmp_path / "hyper")
        assert other.router.k_eval == 3
        assert torch.equal(other(x_BTD).delta, layer(x_BTD).delta)


def test_one_process_goes_on_with_its_optimiser(tmp_path: Path) -> None:
    layer = worker.build("switch:k=2")
    optimiser = worker.adam(layer)
    worker.trained(layer, optimiser, 0, 1, range(3))
    save_sharded(layer, tmp_path / "trained", optimiser=optimiser)
    worker.continues(0, 1, None, tmp_path)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_optimiser_that_keeps_little_or_nothing(tmp_path: Path, momentum: float) -> None:
    def make(layer: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(layer.parameters(), lr=rate, momentum=momentum)

    layer = worker.build("switch:k=2")
    optimiser = make(layer, 0.01)
    worker.trained(layer, optimiser, 0, 1, range(2))
    save_sharded(layer, tmp_path / "sgd", optimiser=optimiser)
    other = worker.build("switch:k=2")
    restored = make(other, 5.0)
    load_sharded(other, tmp_path / "sgd", optimiser=restored)
    for model, by in ((layer, optimiser), (other, restored)):
        worker.trained(model, by, 0, 1, range(2, 3))
    worker.equal_states(other, layer)


def test_optimisers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    layer = worker.build("top2")
    stranger = torch.optim.SGD(worker.build("top2").parameters(), lr=0.1)
    with pytest.raises(UsageError, match="not the model's; make it after shard_model"):
        save_sharded(layer, tmp_path / "stranger", optimiser=stranger)
    factors = torch.optim.Adafactor(layer.parameters(), lr=0.1)
    worker.trained(layer, factors, 0, 1, range(1))
    with pytest.raises(UsageError, match="neither one number nor of the parameter's shape"):
        save_sharded(layer, tmp_path / "factors", optimiser=factors)
    save_sharded(layer, tmp_path / "without")
    with pytest.raises(InputError, match="saved without an optimiser"):
        load_sharded(layer, tmp_path / "without", optimiser=worker.adam(layer))
    assert not (tmp_path / "stranger").exists()
    save_sharded(layer, tmp_path / "grouped", optimiser=worker.adam(layer))
    together = torch.optim.AdamW(layer.parameters())
    with pytest.raises(InputError, match="groups of parameters are not those"):
        load_sharded(layer, tmp_path / "grouped", optimiser=together)


def test_settings_that_are_numbers_of_arrays_come_back_as_numbers(tmp_path: Path) -> None:
    layer = worker.build("top2")
    rate = np.float32(0.25)
    made = torch.optim.SGD(layer.parameters(), lr=rate, momentum=np.float64(0.5))
    save_sharded(layer, tmp_path / "numbers", optimiser=made)
    restored = torch.optim.SGD(layer.parameters(), lr=5.0)
    load_sharded(layer, tmp_path / "numbers", optimiser=restored)
    (group,) = restored.param_groups
    assert (group["lr"], group["momentum"]) == (0.25, 0.5)


def test_settings_that_cannot_be_kept_leave_nothing_behind(tmp_path: Path) -> None:
    layer = worker.build("top2")
    for note in ({1, 2}, torch.ones(2)):
        odd = torch.optim.SGD([{"params": list(layer.parameters()), "note": note}], lr=0.1)
        with pytest.raises(UsageError, match=r"optimiser: .*'note'.* cannot be written"):
            save_sharded(layer, tmp_path / "odd", optimiser=odd)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_filled_only_where_its_optimiser_is(tmp_path: Path) -> None:
    layer = worker.build("top2")
    save_sharded(layer, tmp_path / "kept", optimiser=worker.adam(layer))
    other = worker.zeroed(worker.build("top2"))
    for wrong, words in (
        (torch.optim.AdamW(other.parameters()), "groups of parameters are not those"),
        (torch.optim.SGD(other.parameters(), lr=0.1), "saved with AdamW, given SGD"),
    ):
        with pytest.raises(InputError, match=words):
            load_sharded(other, tmp_path / "kept", optimiser=wrong)
        assert not any(bool(value.any()) for value in other.parameters())
