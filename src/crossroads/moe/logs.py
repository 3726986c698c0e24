"""What the log of a training run says of routing, read from the last micro-batch of a step.

The names are those of an arena's columns (``crossroads.moe.probing``) where the figure is the same.

Axes: E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from crossroads.core.routed import ModelOutput
from crossroads.moe.contract import RoutingDecision
from crossroads.moe.diagnostics import DEAD_SHARE, summarise, true_load, variation


@torch.no_grad()
def routing_figures(output: ModelOutput, kinds: Mapping[int, Sequence[str]]) -> dict[str, float]:
    """Return means over the routed layers (over every iteration of a chain); empty without any.

    ``entropy`` and ``margin`` of a token's probabilities, of routers that have some; ``load_cv``
    and ``dead_experts`` (how many have under a tenth of the mean load), null experts left out;
    ``dropped``, the share of picks lost to capacity; ``active_experts`` that a token ran. ``kinds``
    are those of each layer's experts, by its number.
    """
    found: dict[str, list[float]] = {}
    for record in output.records:
        for decision in record.decisions:
            for name, value in _of_call(decision, kinds[record.layer]).items():
                found.setdefault(name, []).append(value)
    return {name: round(float(np.mean(values)), 6) for name, values in found.items()}


def _of_call(decision: RoutingDecision, kinds: Sequence[str]) -> dict[str, float]:
    summary = summarise(decision, kinds)
    load_cv, dead = summary.cv, len(summary.dead)
    if "null" in kinds:
        load_E = true_load(summary.load, kinds)
        load_cv, dead = variation(load_E), int((load_E < DEAD_SHARE / len(load_E)).sum())
    figures = {
        "entropy": summary.entropy,
        "margin": summary.margin,
        "load_cv": load_cv,
        "dead_experts": float(dead),
        "dropped": summary.dropped,
        "active_experts": summary.mean_active,
    }
    return {name: value for name, value in figures.items() if value is not None}


def loads(output: ModelOutput) -> dict[str, Any]:
    """Return each layer's share of picks by expert, as ``load/LAYER``."""
    rows: dict[str, Any] = {}
    for record in output.records:
        counts = [d.stats["count_E"] for d in record.decisions if "count_E" in d.stats]
        if counts:
            count_E = torch.stack(counts).sum(0)
            share_E = count_E / count_E.sum().clamp_min(1)
            rows[f"load/{record.layer}"] = [round(float(share), 4) for share in share_E]
    return rows
