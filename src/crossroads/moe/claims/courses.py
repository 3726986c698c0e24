"""The language bed with a memory: how many experts a token ran, step by step of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError
from crossroads.core.routed import ModelOutput, routed_layers
from crossroads.moe.beds.lm import LanguageBed
from crossroads.moe.building import MoESpec
from crossroads.moe.probing import LayerProbe, probe

PLACE = "course"  # name of the submodule that remembers


class Course(nn.Module):
    """Mean true experts per token and layer of every training pass; no parameters, no state."""

    def __init__(self, true_E: Sequence[Tensor]) -> None:
        super().__init__()
        self.true_E = list(true_E)
        self.mean: list[float] = []

    def keep(self, model: nn.Module, inputs: Any, output: ModelOutput) -> None:
        """Remember a training pass; a forward hook of the model."""
        if not model.training:
            return
        per_layer = []
        for record, true_E in zip(output.records, self.true_E, strict=True):
            decision = record.decisions[0]
            picks = float(decision.stats["count_E"][true_E].sum())
            per_layer.append(picks / max(float(decision.mask_N.sum()), 1.0))
        self.mean.append(float(np.mean(per_layer)))


@dataclass(frozen=True, kw_only=True)
class CourseBed(LanguageBed):
    """``LanguageBed`` whose routed models carry a ``Course``; for routers without capacity."""

    def build(self, spec: MoESpec) -> nn.Module:
        model = super().build(spec)
        layers = routed_layers(model)
        if layers:
            kinds = [layer.experts.kinds for layer in layers]
            course = Course([torch.tensor([k != "null" for k in each]) for each in kinds])
            model.register_forward_hook(course.keep)
            model.add_module(PLACE, course)
        return model


def course_of(model: nn.Module) -> list[float]:
    """Return mean true experts per token of every training pass, in order.

    Raises InputError for a model that ``CourseBed`` did not build.
    """
    found = model.get_submodule(PLACE) if hasattr(model, PLACE) else None
    if not isinstance(found, Course):
        raise InputError("model: carries no course; build it with CourseBed")
    return found.mean


def ends(course: Sequence[float]) -> tuple[float, float]:
    """Return the means over the first and the last tenth of a course (at least one step)."""
    size = max(len(course) // 10, 1)
    return float(np.mean(course[:size])), float(np.mean(course[-size:]))


def probed(model: nn.Module, output: ModelOutput) -> list[LayerProbe]:
    """Return the probes of a model's answer."""
    return probe(output.records, [layer.experts.kinds for layer in routed_layers(model)])
