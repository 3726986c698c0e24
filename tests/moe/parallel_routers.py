"""What two ranks run to compare every router with one process: its output, losses and gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from crossroads.core.routed import RouteContext, SublayerOutput
from crossroads.moe.layer import MoELayer
from crossroads.moe.parallel import average_gradients, shard_layer
from crossroads.moe.routers import known_settings, router_class, router_names
from tests.moe.conformance import block_tensors, side_information
from tests.moe.parallel_worker import WIDTH, build
from tests.moe.processes import group

LENGTH = 6
SEQUENCES = (1, 2)  # of each rank
# Without noise, which every rank draws for itself.
QUIET = {"softmax-tc": "softmax-tc:noise_std=0:load=0"}
MORE = (
    "switch:z_loss=0.1:f_norm=tokens",
    "adamoe:f_norm=tokens",
    "loss-free:sequence_balance=0.1",
    "promoe:balance=0.1",
    "promoe:balance=0.1:choice=expert",
    "vqmoe:codebook=cosine",
)
# What is not as in one process, and why; docs/moe/parallel.md says the same.
EXCEPTIONS = {
    "switch:noise_std=1.0": "every rank draws noise for its own tokens",
    "top2:later=random": "every rank draws the places of its own tokens",
    "vqmoe:codebook=balanced:init_from_data=false": "revived codes are tokens of the last rank",
}


def specs() -> list[str]:
    """Return every shipped router once, and what settings add to it."""
    found = []
    for name in router_names():
        quiet = f"{name}:noise_std=0" if "noise_std" in known_settings(router_class(name)) else name
        found.append(QUIET.get(name, quiet))
    return [*found, *MORE]


def equals_one_process(rank: int, world: int, mesh: DeviceMesh) -> None:
    failed: list[str] = []
    for spec in specs():
        for n_real in ((6, 2, 5), (4, 0, 0)):  # unequal shares; a rank without real tokens
            for name, off in compared(spec, rank, mesh, n_real).items():
                if off > 1e-5:
                    failed.append(f"{spec} {n_real}: {name} is off by {off:.1e} of its size")
    for spec, reason in EXCEPTIONS.items():
        worst = torch.tensor(max(compared(spec, rank, mesh, (6, 2, 5)).values()))
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        if worst < 1e-3:
            failed.append(f"{spec} is as in one process, though {reason}")
    assert not failed, "\n".join(failed)


def compared(spec: str, rank: int, mesh: DeviceMesh, n_real: tuple[int, ...]) -> dict[str, float]:
    """Return how far off each result of this rank is, as a share of its size."""
    made = torch.Generator().manual_seed(7)
    x_BTD = torch.randn(sum(SEQUENCES), LENGTH, WIDTH, generator=made)
    mask_BT = torch.arange(LENGTH) < torch.tensor(n_real).unsqueeze(1)
    mine = slice(sum(SEQUENCES[:rank]), sum(SEQUENCES[: rank + 1]))

    whole = build(spec)
    x_all = x_BTD.clone().requires_grad_()
    wanted = run(whole, x_all, mask_BT, slice(None))
    (task(wanted) + auxiliary(wanted)).backward()

    layer = shard_layer(build(spec), mesh)
    x_mine = x_BTD[mine].clone().requires_grad_()
    found = run(layer, x_mine, mask_BT, mine)
    share = mask_BT[mine].sum() / mask_BT.sum()
    (mesh.size() * (task(found) + share * auxiliary(found))).backward()
    average_gradients(layer)

    off = {"output": apart(found.delta, wanted.delta[mine])}
    for name, term in wanted.aux.items():
        mean = share * found.aux[name].value.detach()
        dist.all_reduce(mean)
        off[f"loss {name}"] = apart(mean, term.value)
    for name, state in wanted.new_state.items():
        off[f"state {name}"] = apart(found.new_state.get(name, torch.zeros_like(state)), state)
    off["gradient of the tokens"] = apart(x_mine.grad / mesh.size(), x_all.grad[mine], x_all.grad)
    reference = dict(whole.named_parameters())
    for name, parameter in layer.named_parameters():
        ref = reference[name].grad
        ref = torch.zeros_like(reference[name]) if ref is None else ref
        part = ref
        if name.startswith("experts.") and not name.endswith("const"):
            part = ref[list(layer.experts.local)]
        if parameter.requires_grad:
            off[f"gradient of {name}"] = apart(parameter.grad, part, ref)
    return off


def run(layer: MoELayer, x_BTD: Tensor, mask_BT: Tensor, mine: slice) -> SublayerOutput:
    cond = {name: value[mine] for name, value in side_information(LENGTH).items()}
    given = RouteContext(mask_BT=mask_BT[mine], training=True, seed=5, cond=cond)
    return layer(x_BTD, given, **block_tensors(layer.needs, x_BTD, mask_BT[mine]))


def task(answer: SublayerOutput) -> Tensor:
    return (answer.delta * torch.linspace(-1, 1, WIDTH)).sum() + answer.delta.square().sum()


def auxiliary(answer: SublayerOutput) -> Tensor:
    return sum((term.weighted for term in answer.aux.values()), torch.zeros(()))


def apart(found: Tensor, wanted: Tensor, of: Tensor | None = None) -> float:
    """Return the largest difference as a share of the largest of ``of``, or of 0.01."""
    size = float((wanted if of is None else of).detach().abs().max())
    return float((found.detach() - wanted.detach()).abs().max()) / max(size, 0.01)


def work(rank: int, world: int, folder: str) -> None:
    """Join the group over loopback and compare."""
    with group(rank, world, folder):
        mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("expert",))
        equals_one_process(rank, world, mesh)
