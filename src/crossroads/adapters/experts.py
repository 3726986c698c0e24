"""Train a LoRA expert on its own data, with nobody else's in sight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.base_layers import sizes_of
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.skills import factors
from crossroads.adapters.texts import TextBatch
from crossroads.adapters.training import Group, TrainSettings, train_routed
from crossroads.core.progress import Progress


class Alone(Router):
    """The bank's only expert, with weight 1, for its training."""

    name: ClassVar[str] = "alone"

    def route(self, given: RouteInput) -> Routing:
        return Routing(weights=given.x_BTI.new_ones(1, 1, 1, 1))


def new_expert(
    model: nn.Module, name: str, *, targets: Sequence[str], rank: int, alpha: float, seed: int = 0
) -> Expert:
    """Return an expert that changes nothing yet: A as PEFT draws it, B zero, scale alpha / rank.

    ``targets`` are the last parts of the names of linear layers, such as "q_proj". Raises
    InputError where the model has none of them.
    """
    return expert_of(sizes_of(model, targets), name, rank=rank, alpha=alpha, seed=seed)


def expert_of(
    sizes: Mapping[str, tuple[int, int]], name: str, *, rank: int, alpha: float, seed: int = 0
) -> Expert:
    """Do as ``new_expert`` for layers by full name, with their inputs and outputs."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for full, (inputs, outputs) in sizes.items():
        bound = inputs**-0.5  # Kaiming's with slope sqrt(5)
        a_RI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        modules[full] = LoRA(a_RI=a_RI, b_OR=torch.zeros(outputs, rank), scale=alpha / rank)
    return Expert(name=name, modules=modules)


def train_expert(
    model: nn.Module,
    expert: Expert,
    batch_of: Callable[[int], TextBatch],
    settings: TrainSettings,
    *,
    lr: float,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> tuple[Expert, tuple[float, ...]]:
    """Return the expert after training, and the loss of every step.

    Raises what ``training.train`` raises.

    Parameters
    ----------
    model : frozen causal language model; it is given back as it was
    batch_of : step -> batch of the expert's training data
    checkpoint, identity, progress : of ``training.train``
    """
    bank = AdapterBank([expert])
    losses = train_routed(
        model,
        bank,
        Alone(),
        batch_of,
        settings,
        groups=[Group(parameters=factors(bank), lr=lr)],
        checkpoint=checkpoint,
        identity=identity,
        progress=progress,
    )
    return bank.expert(expert.name), losses
