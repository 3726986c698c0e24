"""The language bed with a memory: which experts each route chose, at checkpoints of training.

A route is the linear gate of a token-choice router, or one branch of several. Consistency is the
share of positions that keep their expert, and the same with chance taken out, since a route that
sends everything to one expert is consistent for nothing.

Axes: N real tokens, L routed layers, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError
from crossroads.core.routed import routed_layers
from crossroads.moe.beds import ArenaBed
from crossroads.moe.beds.lm import LanguageBed
from crossroads.moe.building import MoESpec
from crossroads.moe.contract import RouterInput, RoutingDecision, TokenChoice
from crossroads.moe.training import TrainConfig

PLACE = "checkpoints"  # name of the submodule that remembers
LINEAR = "linear"

Routes = Mapping[str, Sequence[Tensor]]  # route -> first expert of every token, (N,) per layer


class Checkpoints(nn.Module):
    """First experts on the probe batch at every evaluation; no parameters, no state."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: list[Routes] = []


@dataclass(frozen=True, kw_only=True)
class CheckpointBed(LanguageBed):
    """``LanguageBed`` whose models remember their routing at every evaluation."""

    def build(self, spec: MoESpec) -> nn.Module:
        model = super().build(spec)
        model.add_module(PLACE, Checkpoints())
        return model

    def evaluate(self, model: nn.Module, config: TrainConfig) -> dict[str, float]:
        records = self.probe(model)[0].records
        decisions = [record.decisions[0] for record in records]
        checkpoints_of(model).append(routes_of(decisions))
        return super().evaluate(model, config)


def checkpoints_of(model: nn.Module) -> list[Routes]:
    """Return what a model of ``CheckpointBed`` remembers. Raises InputError for another model."""
    found = model.get_submodule(PLACE) if hasattr(model, PLACE) else None
    if not isinstance(found, Checkpoints):
        raise InputError("model: carries no checkpoints; build it with CheckpointBed")
    return found.routes


def routes_of(decisions: Sequence[RoutingDecision]) -> Routes:
    """Return the first expert of every token by route, one tensor (N,) a layer."""
    found: dict[str, list[Tensor]] = {}
    for decision in decisions:
        names = [branch.name for branch in decision.branches] or [LINEAR]
        for name, choice in zip(names, decision.choices, strict=True):
            if not isinstance(choice, TokenChoice):
                form = type(choice).__name__
                raise InputError(f"route {name!r}: expected TokenChoice, got {form}")
            found.setdefault(name, []).append(choice.idx_NK[decision.mask_N, 0])
    return found


def router_inputs(model: nn.Module, bed: ArenaBed | LanguageBed) -> list[RouterInput]:
    """Return what every router sees on the probe batch, layer by layer."""
    seen: list[RouterInput] = []
    hooks = [
        layer.routers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for layer in routed_layers(model)
    ]
    try:
        bed.probe(model)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def with_noise(inp: RouterInput, share: float, seed: int) -> RouterInput:
    """Return the input with Gaussian noise of ``share`` times the tokens' root mean square."""
    generator = torch.Generator().manual_seed(seed)
    noise_BTD = torch.randn(inp.x_BTD.shape, generator=generator)
    scale = share * inp.x_BTD.square().mean().sqrt()
    return replace(inp, x_BTD=inp.x_BTD + scale * noise_BTD)


def kept(one: Sequence[Tensor], other: Sequence[Tensor], n_experts: int) -> tuple[float, float]:
    """Return the share of positions that keep their expert, and with chance taken out.

    Means over layers; (share - chance) / (1 - chance) with the chance of two independent draws
    from the loads (Cohen's kappa), and 0 for a layer in which one expert serves all.
    """
    plain, beyond = [], []
    for a_N, b_N in zip(one, other, strict=True):
        share = float((a_N == b_N).double().mean())
        loads = [np.bincount(x.numpy(), minlength=n_experts) / len(x) for x in (a_N, b_N)]
        chance = float(loads[0] @ loads[1])
        plain.append(share)
        beyond.append((share - chance) / (1 - chance) if chance < 1 - 1e-9 else 0.0)
    return float(np.mean(plain)), float(np.mean(beyond))
