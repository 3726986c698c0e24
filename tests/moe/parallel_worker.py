"""What every rank of a test of expert parallelism runs: a module of its own, spawned by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from crossroads.core.errors import CrossroadsError, InputError, UsageError
from crossroads.core.routed import LayerRecord, ModelOutput, RouteContext
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.commits import Commits
from crossroads.moe.experts import FFNBank
from crossroads.moe.layer import MoELayer
from crossroads.moe.parallel import average_gradients, shard_layer
from crossroads.moe.ranks import Ranks
from crossroads.moe.sharded import load_sharded, save_sharded
from tests.moe.processes import group

N_EXPERTS, WIDTH, LENGTH = 8, 12, 6
ROUTERS = ("switch:k=2", "adamoe", "softmax-ec:noise_std=0", "loss-free")


def build(router: str, *, activation: str = "swiglu", n_experts: int = N_EXPERTS) -> MoELayer:
    torch.manual_seed(3)
    spec = MoESpec(
        router=router,
        n_experts=n_experts,
        dense_hidden=16,
        activation=activation,  # type: ignore[arg-type]
    )
    layer = MoEFactory(spec, num_layers=1)(0, WIDTH, None)
    assert isinstance(layer, MoELayer)
    return layer


def sizes(world: int) -> list[int]:
    """Sequences of every rank, not the same for all."""
    return [1 + rank % 2 for rank in range(world)]


def batch(world: int) -> tuple[Tensor, Tensor]:
    """Return tokens and mask of all ranks; the last one has no real token."""
    made = torch.Generator().manual_seed(7)
    total = sum(sizes(world))
    x_BTD = torch.randn(total, LENGTH, WIDTH, generator=made)
    mask_BT = torch.rand(total, LENGTH, generator=made) < 0.8
    mask_BT[:, 0] = True
    mask_BT[-sizes(world)[-1] :] = False
    return x_BTD, mask_BT


def loss_of(layer: MoELayer, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the summed loss without auxiliary terms, and the auxiliary loss."""
    answer = layer(x_BTD, RouteContext(mask_BT=mask_BT, training=True))
    direction = torch.linspace(-1, 1, WIDTH)
    task = (answer.delta * direction).sum() + answer.delta.square().sum()
    aux = sum((term.weighted for term in answer.aux.values()), torch.zeros(()))
    return answer.delta, task, aux


def equals_one_process(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    for router in ROUTERS:
        same_as_one(rank, world, mesh, router, "swiglu")
    same_as_one(rank, world, mesh, "switch:k=2", "gelu")


def equals_one_process_on_two_meshes(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    """Data parallelism over pairs of ranks that split the experts."""
    both = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "expert"))
    same_as_one(
        rank,
        world,
        both["expert"],
        "switch:k=2",
        "swiglu",
        counts=dist.group.WORLD,
        replicas=both["data"].get_group(),
    )
    layer = shard_layer(build("loss-free"), both["expert"])
    save_sharded(layer, folder / "two-meshes")
    filled = zeroed(shard_layer(build("loss-free"), mesh))
    load_sharded(filled, folder / "two-meshes")
    equal_states(filled, shard_layer(build("loss-free"), mesh))


def same_as_one(
    rank: int,
    world: int,
    mesh: DeviceMesh,
    router: str,
    activation: str,
    *,
    counts: Any = None,
    replicas: Any = None,
) -> None:
    x_BTD, mask_BT = batch(world)
    whole = build(router, activation=activation)
    x_all = x_BTD.clone().requires_grad_()
    out, task, aux = loss_of(whole, x_all, mask_BT)
    (task + aux).backward()

    mine = slice(sum(sizes(world)[:rank]), sum(sizes(world)[: rank + 1]))
    layer = shard_layer(build(router, activation=activation), mesh, counts_group=counts)
    x_mine = x_BTD[mine].clone().requires_grad_()
    part, task, aux = loss_of(layer, x_mine, mask_BT[mine])
    torch.testing.assert_close(part, out[mine], atol=1e-5, rtol=1e-5)
    # The mean over ranks by real tokens of the auxiliary terms, the sum of the task's.
    share = mask_BT[mine].sum() / mask_BT.sum()
    (world * (task + share * aux)).backward()
    average_gradients(layer, replicas=replicas)
    assert x_mine.grad is not None
    assert x_all.grad is not None
    torch.testing.assert_close(x_mine.grad / world, x_all.grad[mine], atol=1e-5, rtol=1e-4)
    local = layer.experts.local
    reference = dict(whole.named_parameters())
    for name, parameter in layer.named_parameters():
        wanted = reference[name].grad
        if wanted is None:
            wanted = torch.zeros_like(reference[name])
        if name.startswith("experts.") and not name.endswith("const"):
            wanted = wanted[list(local)]
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-5, rtol=1e-4, msg=name)


def autocasts_like_one_process(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    x_BTD, mask_BT = batch(world)
    mine = slice(sum(sizes(world)[:rank]), sum(sizes(world)[: rank + 1]))
    for router in ("switch:k=2", "softmax-ec:noise_std=0"):
        whole, layer = build(router), shard_layer(build(router), mesh)
        with torch.autocast("cpu", torch.bfloat16):
            out, task, _ = loss_of(whole, x_BTD, mask_BT)
            part, task_here, _ = loss_of(layer, x_BTD[mine], mask_BT[mine])
        assert part.dtype == out.dtype == torch.bfloat16
        torch.testing.assert_close(part, out[mine], atol=0.02, rtol=0.02)
        task.backward()
        (world * task_here).backward()
        average_gradients(layer)
        wanted = whole.router.gate.weight.grad
        torch.testing.assert_close(layer.router.gate.weight.grad, wanted, atol=0.2, rtol=0.05)


def penalises_like_one_process(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    """Gradients of gradients travel between ranks, too."""
    x_BTD, mask_BT = batch(world)
    mine = slice(sum(sizes(world)[:rank]), sum(sizes(world)[: rank + 1]))
    whole, layer = build("switch:k=2"), shard_layer(build("switch:k=2"), mesh)
    for model, rows, scale in ((whole, slice(None), 1), (layer, mine, world)):
        assert isinstance(model.experts, FFNBank)
        model.experts.path = "loop"  # the fast kernels have no second derivatives
        x = x_BTD[rows].clone().requires_grad_()
        _, task, _ = loss_of(model, x, mask_BT[rows])
        (slope,) = torch.autograd.grad(task, x, create_graph=True)
        (scale * slope.square().sum()).backward()
    average_gradients(layer)
    wanted, found = whole.router.gate.weight.grad, layer.router.gate.weight.grad
    assert wanted is not None
    assert float(wanted.norm()) > 1
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4)


def waits_for_nobody(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    """One rank has all the rows, of a stream and with weights that carry no gradient."""
    x_BTD, token_id = torch.ones(2, LENGTH, WIDTH), torch.zeros(2, LENGTH, dtype=torch.int64)
    layer = shard_layer(build("hash"), mesh)
    given = RouteContext(training=True, cond={"token_id": token_id})  # all to expert 0
    layer(x_BTD, given).delta.sum().backward()
    average_gradients(layer)
    whole = build("hash")
    whole(x_BTD, given).delta.sum().backward()
    assert isinstance(layer.experts, FFNBank)
    assert isinstance(whole.experts, FFNBank)
    assert whole.experts.up.grad is not None
    wanted = whole.experts.up.grad[list(layer.experts.local)]  # of each rank's loss the same
    torch.testing.assert_close(layer.experts.up.grad, wanted, atol=1e-5, rtol=1e-4)


def commits_alike(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    """State that each rank would move by its own counts moves by those of all."""
    x_BTD, mask_BT = batch(world)
    given = RouteContext(mask_BT=mask_BT, training=True)
    whole = build("loss-free")
    answer = whole(x_BTD, given)
    whole.commit(whole.stats(answer.decisions), answer.new_state)

    mine = slice(sum(sizes(world)[:rank]), sum(sizes(world)[: rank + 1]))
    layer = shard_layer(build("loss-free"), mesh)
    answer = layer(x_BTD[mine], RouteContext(mask_BT=mask_BT[mine], training=True))
    commits = Commits(layer, Ranks.here())
    record = LayerRecord(
        layer=0,
        decisions=answer.decisions,
        aux=answer.aux,
        new_state=answer.new_state,
        flops=answer.flops,
    )
    commits.add(ModelOutput(out=answer.delta, records=(record,)))
    commits.apply()
    found, wanted = layer.state_dict(), whole.state_dict()
    assert torch.equal(found["router.bias_E"], wanted["router.bias_E"])
    assert bool(wanted["router.bias_E"].any())


def trained(
    layer: MoELayer, optimiser: torch.optim.Optimizer, rank: int, world: int, steps: range
) -> MoELayer:
    """Take steps of one stream of batches, of which every rank sees its part."""
    mine = slice(4 // world * rank, 4 // world * (rank + 1))
    for step in steps:
        x_BTD = torch.randn(4, LENGTH, WIDTH, generator=torch.Generator().manual_seed(step))
        _, task, aux = loss_of(layer, x_BTD[mine], torch.ones(4, LENGTH, dtype=torch.bool)[mine])
        optimiser.zero_grad()
        (task * world + aux).backward()
        if world > 1:
            average_gradients(layer)
        optimiser.step()
    return layer


def adam(layer: MoELayer, rate: float = 1e-3) -> torch.optim.AdamW:
    groups = [
        {"params": list(layer.router.parameters()), "weight_decay": 0.0},
        {"params": list(layer.experts.parameters())},
    ]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.1)


def saves_optimiser(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    layer = shard_layer(build("switch:k=2"), mesh)
    optimiser = adam(layer)
    trained(layer, optimiser, rank, world, range(3))
    save_sharded(layer, folder / "trained", optimiser=optimiser)


def continues(rank: int, world: int, mesh: DeviceMesh | None, folder: Path) -> None:
    """Go on where other ranks stopped, as if one process had never stopped."""
    wanted = build("switch:k=2")
    trained(wanted, adam(wanted), 0, 1, range(4))
    layer = zeroed(build("switch:k=2"))
    if mesh is not None:
        shard_layer(layer, mesh)
    optimiser = adam(layer, rate=5.0)
    load_sharded(layer, folder / "trained", optimiser=optimiser)
    assert [group["lr"] for group in optimiser.param_groups] == [1e-3, 1e-3]
    trained(layer, optimiser, rank, world, range(3, 4))
    whole = dict(wanted.named_parameters())
    for name, value in layer.named_parameters():
        part = whole[name]
        if mesh is not None and name.startswith("experts."):
            part = part[list(layer.experts.local)]
        torch.testing.assert_close(value, part, atol=1e-5, rtol=1e-5, msg=name)


def refuses(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    expect(UsageError, "5 cannot be split", lambda: shard_layer(build("top2", n_experts=5), mesh))
    layer = shard_layer(build("top2"), mesh)
    expect(UsageError, "split over ranks already", lambda: shard_layer(layer, mesh))
    expect(UsageError, "average_gradients", lambda: Ranks.here().sum_gradients(layer))
    assert isinstance(layer.experts, FFNBank)
    x_ND = torch.randn(3, WIDTH)
    elsewhere = (layer.experts.local[0] + layer.experts.n_local) % N_EXPERTS
    expect(InputError, "lives on rank", lambda: layer.experts.expert(elsewhere, x_ND))
    here = layer.experts.local[-1]
    whole = build("top2").experts.expert(here, x_ND)
    torch.testing.assert_close(layer.experts.expert(here, x_ND), whole, atol=1e-5, rtol=1e-5)


def expect(kind: type[CrossroadsError], words: str, call: Callable[[], object]) -> None:
    try:
        call()
    except kind as error:
        assert words in str(error), str(error)
        return
    raise AssertionError(f"no {kind.__name__}: {words}")


def saves(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    save_sharded(shard_layer(build("loss-free"), mesh), folder / "checkpoint")
    expect(InputError, "exists", lambda: save_sharded(build("top2"), folder / "checkpoint"))


def loads(rank: int, world: int, mesh: DeviceMesh, folder: Path) -> None:
    layer = zeroed(shard_layer(build("loss-free"), mesh))
    load_sharded(layer, folder / "checkpoint")
    equal_states(layer, shard_layer(build("loss-free"), mesh))


def zeroed(layer: MoELayer) -> MoELayer:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    return layer


def equal_states(layer: MoELayer, wanted: MoELayer) -> None:
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, wanted.state_dict()[name], atol=0, rtol=0, msg=name)


STEPS = (
    equals_one_process,
    equals_one_process_on_two_meshes,
    autocasts_like_one_process,
    penalises_like_one_process,
    waits_for_nobody,
    commits_alike,
    refuses,
    saves,
    loads,
    saves_optimiser,
    continues,
)
WORK = {step.__name__: step for step in STEPS}


def run(rank: int, world: int, folder: str, names: tuple[str, ...]) -> None:
    """Join the group over loopback and do the named work."""
    with group(rank, world, folder, call=names[0]):
        mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("expert",))
        for name in names:
            WORK[name](rank, world, mesh, Path(folder))
