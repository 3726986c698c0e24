"""Expert parallelism: experts split over ranks, tokens sent to them and back.

    dist.init_process_group("nccl")                       # "gloo" on CPUs
    mesh = init_device_mesh("cuda", (dist.get_world_size(),), mesh_dim_names=("expert",))
    shard_model(model, mesh)

Every rank routes its own tokens, sends a token once to each rank that owns one of its experts, and
gets back the weighted sum of their outputs: with K places on few ranks that is less traffic than a
row per place. Groups of expert choice and capacity never straddle ranks. The counts behind balance
losses are summed over ranks, so that the mean over ranks of the loss is the single process's.

Collectives are called in the same order on every rank, also by ranks without tokens; every rank
must therefore run the same layers the same number of times.

Axes: N tokens of this rank, M rows received, D width, K places, R ranks, E experts, P slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import routed_layers
from crossroads.moe.contract import NOBODY
from crossroads.moe.experts import Experts, FFNBank
from crossroads.moe.layer import MoELayer

ProcessGroup = Any


class _AllToAll(torch.autograd.Function):
    """Rows to other ranks, gradients back; one node for all tensors, so the order is one."""

    @staticmethod
    def forward(
        ctx: Any, group: ProcessGroup, sent: list[int], got: list[int], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.sent, ctx.got = group, sent, got
        return tuple(_exchange(t, sent, got, group) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        # By way of the Function: gradients of gradients travel, too.
        return (None, None, None, *_AllToAll.apply(ctx.group, ctx.got, ctx.sent, *grads))


def _exchange(rows: Tensor, sent: list[int], got: list[int], group: ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(got), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), got, sent, group=group)
    return out


def all_to_all(
    tensors: Sequence[Tensor], sent: list[int], got: list[int], group: ProcessGroup
) -> tuple[Tensor, ...]:
    """Send the first ``sent[0]`` rows of each tensor to rank 0 and so on; differentiable.

    ``got`` is what the others send here. Returns the rows received, by rank.
    """
    answer: tuple[Tensor, ...] = _AllToAll.apply(group, sent, got, *tensors)
    return answer


def exchanged_counts(sent: list[int], like: Tensor, group: ProcessGroup) -> list[int]:
    """Return how many rows every rank sends here."""
    out = torch.tensor(sent, dtype=torch.int64, device=like.device)
    got = torch.empty_like(out)
    dist.all_to_all_single(got, out, group=group)
    counts: list[int] = got.tolist()
    return counts


class ExpertParallelBank(FFNBank):
    """A bank of feed-forward experts of which this rank holds E / R, in order.

    Takes a full bank (equal on all ranks) and a one-dimensional mesh. Identity and constant experts
    have no matrices and stay on every rank. Raises UsageError when the experts cannot be split
    evenly.
    """

    def __init__(self, bank: FFNBank, mesh: DeviceMesh) -> None:
        if mesh.ndim != 1:
            raise UsageError(
                f"mesh: expected one dimension of expert ranks, got {mesh.ndim}; "
                "give a submesh such as mesh['expert']"
            )
        Experts.__init__(self, bank.kinds, bank.d_out)
        n_ffn, self.n_ranks = bank.up.shape[0], mesh.size()
        if n_ffn % self.n_ranks:
            raise UsageError(
                f"experts: {n_ffn} cannot be split evenly over {self.n_ranks} ranks; "
                "choose a number of experts that the ranks divide"
            )
        self.mesh = mesh
        self.group: ProcessGroup = mesh.get_group()
        self.n_local = n_ffn // self.n_ranks
        self.d, self.hidden = bank.d, bank.hidden
        self.activation, self.path = bank.activation, bank.path
        first = mesh.get_local_rank() * self.n_local
        self.local = range(first, first + self.n_local)
        for name in ("up", "down", "up_bias", "down_bias", "const"):
            full = getattr(bank, name)
            self.register_parameter(name, None if full is None else self._part(name, full))
        for name, buffer in bank.named_buffers():
            self.register_buffer(name, buffer, persistent=False)

    def _part(self, name: str, full: nn.Parameter) -> nn.Parameter:
        rows = full.detach() if name == "const" else full.detach()[list(self.local)]
        return nn.Parameter(rows.clone(), requires_grad=full.requires_grad)

    def sharded_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that differ from rank to rank, split along their first axis."""
        for name, parameter in self.named_parameters():
            if name != "const":
                yield name, parameter

    def expert(self, index: int, x: Tensor, **arguments: Any) -> Tensor:
        if self.kinds[index] != "ffn":
            return super().expert(index, x, **arguments)
        row = int(self._ffn_E[index])
        if row not in self.local:
            raise InputError(
                f"expert {index}: lives on rank {row // self.n_local} of the mesh; ask there"
            )
        x_ND = x.reshape(-1, self.d)
        idx_N1 = torch.full((len(x_ND), 1), row - self.local[0], device=x.device)
        return super()._bank(x_ND, idx_N1, x_ND.new_ones(len(x_ND), 1)).reshape(x.shape)

    def _bank(self, x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor) -> Tensor:
        """Return sum_k w f(x) with experts wherever they live; ``idx`` counts all of them."""
        rank_NK = torch.where(idx_NK >= 0, idx_NK // self.n_local, NOBODY)
        ranks_R = torch.arange(self.n_ranks, device=idx_NK.device)
        goes_NR = (rank_NK.unsqueeze(-1) == ranks_R).any(1)
        # Rank-major: all rows for rank 0 first, then those for rank 1, ...
        to_M, row_M = goes_NR.T.nonzero(as_tuple=True)
        sent = goes_NR.sum(0).tolist()
        got = exchanged_counts(sent, x_ND, self.group)
        here_MK = rank_NK[row_M] == to_M.unsqueeze(1)
        local_MK = torch.where(here_MK, idx_NK[row_M] - to_M.unsqueeze(1) * self.n_local, NOBODY)
        w_MK = torch.where(here_MK, w_NK[row_M], torch.zeros_like(w_NK[row_M]))
        work_MK = _exchange(local_MK, sent, got, self.group)
        x_MD, w_MK = all_to_all((x_ND[row_M], w_MK), sent, got, self.group)
        # Without rows too: it keeps our weights in the graph, and others wait for our backward.
        y_MD = super()._bank(x_MD, work_MK, w_MK)
        (back_MD,) = all_to_all((y_MD,), got, sent, self.group)
        # In the experts' own precision, which under autocast is not that of the tokens.
        return back_MD.new_zeros(x_ND.shape).index_add(0, row_M, back_MD)

    def _slots(self, x_RCD: Tensor) -> Tensor:
        """Return every expert applied to its slots; the number of slots may differ by rank."""
        slots = x_RCD.shape[1]
        counts = exchanged_counts([slots] * self.n_ranks, x_RCD, self.group)
        sent = [self.n_local * slots] * self.n_ranks
        got = [self.n_local * count for count in counts]
        flat = x_RCD.reshape(-1, x_RCD.shape[-1])
        (rows,) = all_to_all((flat,), sent, got, self.group)
        blocks = [
            block.reshape(self.n_local, count, self.d)
            for block, count in zip(rows.split(got), counts, strict=True)
        ]
        y_LPD = super()._slots(torch.cat(blocks, 1))
        back = torch.cat([b.reshape(-1, self.d) for b in y_LPD.split(counts, 1)])
        (out,) = all_to_all((back,), got, sent, self.group)
        return out.reshape(x_RCD.shape)


def shard_layer(
    layer: MoELayer, mesh: DeviceMesh, *, counts_group: ProcessGroup | None = None
) -> MoELayer:
    """Replace the experts of a layer by this rank's part, in place, and return the layer.

    ``mesh`` has one dimension, the ranks that share the experts. ``counts_group`` are all ranks
    with different tokens, over which the counts of balance losses are summed; default those of the
    mesh. Raises UsageError for experts that cannot be split and for what is no mesh.
    """
    if not isinstance(mesh, DeviceMesh):
        raise UsageError(
            f"mesh: expected a DeviceMesh, got {mesh!r}; make one with init_device_mesh"
        )
    if not isinstance(layer.experts, FFNBank):
        raise UsageError(
            f"experts: {type(layer.experts).__name__} cannot be split over ranks; use an FFNBank"
        )
    if isinstance(layer.experts, ExpertParallelBank):
        raise UsageError("experts: split over ranks already; shard a layer once")
    layer.experts = ExpertParallelBank(layer.experts, mesh)
    for router in layer.routers:
        if hasattr(router, "process_group"):
            router.process_group = counts_group or mesh.get_group()
    return layer


def shard_model(
    model: nn.Module, mesh: DeviceMesh, *, counts_group: ProcessGroup | None = None
) -> nn.Module:
    """Split the experts of every routed layer over the ranks of a mesh, in place.

    Raises UsageError for a mesh that is none, and for a model without routed layers.
    """
    layers = routed_layers(model)
    if not layers:
        raise UsageError(f"model: {type(model).__name__} has no routed layers to split")
    for layer in layers:
        assert isinstance(layer, MoELayer)
        shard_layer(layer, mesh, counts_group=counts_group)
    return model


def expert_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that live on one rank only."""
    banks = [m for m in model.modules() if isinstance(m, ExpertParallelBank)]
    return {parameter for bank in banks for _, parameter in bank.sharded_parameters()}


@torch.no_grad()
def average_gradients(
    model: nn.Module, group: ProcessGroup | None = None, *, replicas: ProcessGroup | None = None
) -> None:
    """Make every gradient that of the mean over ranks of their losses; call after ``backward``.

    Replicated parameters are averaged over the ranks of ``group`` (default: all). An expert has
    already received the gradients of the tokens of its mesh; where meshes stand side by side,
    ``replicas`` are the ranks that hold the same experts, over which they are summed. The sum is
    divided by the number of ranks in ``group``. Raises UsageError without a process group.
    """
    if not dist.is_initialized():
        raise UsageError(
            "average_gradients: no process group; call torch.distributed.init_process_group first"
        )
    world = dist.get_world_size(group)
    own = expert_parameters(model)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)  # all ranks must join the reduction
        if parameter not in own:
            dist.all_reduce(parameter.grad, group=group)
        elif replicas is not None:
            dist.all_reduce(parameter.grad, group=replicas)
        parameter.grad /= world
