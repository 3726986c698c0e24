"""Processes that train one model together: each takes its share of a step's micro-batches.

    torchrun --nproc-per-node 2 script.py

where the script calls ``torch.distributed.init_process_group("gloo")`` and then ``train``. Whatever
their number, the processes see the same micro-batches in a step, sum the gradients and advance the
routers' state by the counts of all: the numbers are those of one process, up to the order of
additions, and a job may continue with more or fewer of them. Every process holds the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossroads.core.errors import UsageError

States = Mapping[int, Mapping[str, Tensor]]  # by layer and name


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the default process group; alone where there is none."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Return this process's place."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, micro_batches: int) -> range:
        """Return which micro-batches of a step are this process's: neighbours, in rank order.

        Raises UsageError where they cannot be divided evenly.
        """
        if micro_batches % self.world:
            raise UsageError(
                f"micro_batches: {micro_batches} cannot be divided evenly over {self.world} "
                "processes; choose a multiple of their number"
            )
        each = micro_batches // self.world
        return range(self.rank * each, (self.rank + 1) * each)

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.world > 1:
            dist.barrier()

    def gathered(self, value: Any) -> list[Any]:
        """Return every process's value, in rank order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def total(self, *numbers: float) -> tuple[float, ...]:
        """Return numbers summed over the processes."""
        rows = self.gathered(numbers)
        return tuple(sum(column) for column in zip(*rows, strict=True))

    @torch.no_grad()
    def sum_gradients(self, model: nn.Module) -> None:
        """Make every gradient the sum over processes; a parameter that nobody used keeps none.

        Raises UsageError for experts split over ranks: theirs are not the same parameters.
        """
        if self.world == 1:
            return
        from crossroads.moe.parallel import expert_parameters  # needs torch.distributed

        if expert_parameters(model):
            raise UsageError(
                "model: its experts are split over ranks, and gradients of different experts "
                "cannot be summed; leave shard_model out, or write the step yourself with "
                "average_gradients"
            )
        parameters = [p for p in model.parameters() if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        if parameters:
            used = used.to(parameters[0].device)
            dist.all_reduce(used, op=dist.ReduceOp.MAX)
        for parameter, is_used in zip(parameters, used.tolist(), strict=True):
            if not is_used:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    @torch.no_grad()
    def summed(self, stats: States) -> dict[int, dict[str, Tensor]]:
        """Return counts summed over the processes; all hold the same layers and names."""
        found = {layer: {n: v.clone() for n, v in stats[layer].items()} for layer in sorted(stats)}
        if self.world > 1:
            for values in found.values():
                for name in sorted(values):
                    dist.all_reduce(values[name])
        return found

    @torch.no_grad()
    def latest(self, states: States) -> dict[int, dict[str, Tensor]]:
        """Return each state from the last process that has it: that of the last micro-batch."""
        if self.world == 1:
            return {layer: dict(values) for layer, values in states.items()}
        mine = {(layer, name): v for layer, values in states.items() for name, v in values.items()}
        shapes = {key: (tuple(v.shape), v.dtype) for key, v in mine.items()}
        found: dict[int, dict[str, Tensor]] = {}
        everybody = self.gathered(shapes)
        for layer, name in sorted({key for held in everybody for key in held}):
            owner = max(rank for rank, held in enumerate(everybody) if (layer, name) in held)
            shape, dtype = everybody[owner][layer, name]
            if owner == self.rank:
                value = mine[layer, name].contiguous()
            else:
                value = torch.empty(shape, dtype=dtype, device=self._device(mine))
            dist.broadcast(value, owner)
            found.setdefault(layer, {})[name] = value
        return found

    @staticmethod
    def _device(held: Mapping[Any, Tensor]) -> torch.device:
        """Return where states live; without one of its own, where the group's tensors do."""
        for value in held.values():
            return value.device
        is_gpu = dist.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if is_gpu else torch.device("cpu")
