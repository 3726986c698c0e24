"""Figures of what four routers learned, for their pages: train each bed for minutes, draw SVGs.

    python benchmarks/moe/figures_gates.py [vision-moe vqmoe hyper attention] [--out FOLDER]

One seed each; the claims (``crossroads verify``) have the seeds and intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from drawing import Line, cells_svg, draw, lines_svg
from torch import nn

from crossroads.core.routed import routed_layers
from crossroads.moe.beds import ArenaBed, get_bed
from crossroads.moe.claims import hyperrouter, vision_moe, vqmoe, yuan_attention_router
from crossroads.moe.claims.arms import Arm
from crossroads.moe.claims.checkpoints import CheckpointBed, router_inputs, routes_of
from crossroads.moe.probing import probe
from crossroads.moe.training import Watch, train

EVERY = 10  # steps between two points of a curve


def trained(bed: ArenaBed, arm: Arm, steps: int, watch: Watch | None = None) -> nn.Module:
    config = replace(bed.config("quick"), steps=steps)
    return train(bed, arm.spec(bed), config, watch=watch).model


def draw_vision_moe() -> str:
    bed = get_bed("vision")
    rows, cells = [], []
    for name in vision_moe.SPARSE:
        model = trained(bed, vision_moe.ARMS[name], vision_moe.STEPS[False])
        with torch.no_grad():
            output, _ = bed.probe(model)
        last = probe(output.records, [layer.experts.kinds for layer in routed_layers(model)])[-1]
        count_N = np.round(last.experts_N).astype(int).clip(max=4)
        share = np.bincount(count_N, minlength=5) / len(count_N)
        rows.append(name)
        cells.append([(f"{value:.0%}", float(value)) for value in share])
    title = (
        "Share of image patches by experts that serve them, 16 slots for 16 patches (last layer)"
    )
    return cells_svg(title, rows, cells, columns=["0", "1", "2", "3", "4 and more"])


def draw_vqmoe() -> str:
    bed = CheckpointBed()
    lines: dict[str, Line] = {}
    routes = {vqmoe.VQ: "discrete", vqmoe.BALANCED: "discrete", vqmoe.TOP2: "linear"}
    for name, route in routes.items():
        steps: list[float] = []
        shares: list[float] = []

        def note(
            step: int,
            model: nn.Module,
            route: str = route,
            steps: list[float] = steps,
            shares: list[float] = shares,
        ) -> None:
            if step % EVERY and step != 1:
                return
            with torch.no_grad():
                inputs = router_inputs(model.eval(), bed)
                routers = [layer.routers[0] for layer in routed_layers(model)]
                decisions = [r.decide(i).decision for r, i in zip(routers, inputs, strict=True)]
            steps.append(step)
            shares.append(vqmoe.busiest(routes_of(decisions)[route]))

        trained(bed, vqmoe.ARMS[name], vqmoe.STEPS[False], note)
        label = {vqmoe.VQ: "codes", vqmoe.BALANCED: "balanced codes", vqmoe.TOP2: "linear gate"}
        lines[label[name]] = (steps, shares)
    return lines_svg(
        "Share of bytes that take the busiest of 8 experts (language model)",
        lines,
        y_label="share of bytes",
        steps=vqmoe.STEPS[False],
    )


def draw_hyper() -> str:
    bed = get_bed("lm")
    rows, cells = [], []
    for name, arm in hyperrouter.ARMS.items():
        model = trained(bed, arm, hyperrouter.STEPS[False])
        with torch.no_grad():
            found = hyperrouter.by_k(model, bed, bed.config("quick"))
        rows.append(name)
        cells.append([(f"{found[hyperrouter.at(k)]:.2f}", 0.0) for k in hyperrouter.JUDGED_K])
    worst = max(float(word) for line in cells for word, _ in line)
    best = min(float(word) for line in cells for word, _ in line)
    shaded = [
        [(word, (worst - float(word)) / max(worst - best, 1e-9)) for word, _ in line]
        for line in cells
    ]
    title = "Bits per byte by experts a token in evaluation (dark: better)"
    return cells_svg(title, rows, shaded, columns=[f"K = {k}" for k in hyperrouter.JUDGED_K])


def draw_attention() -> str:
    claim = yuan_attention_router
    bed = claim.GateBed()
    model = trained(bed, claim.ARMS[claim.ATTENTION], claim.STEPS[False])
    with torch.no_grad():
        inputs = router_inputs(model, bed)
        q_NE, k_NE, _ = claim.parts(routed_layers(model)[-1].routers[0], inputs[-1])
        attn_EE = torch.softmax(q_NE.unsqueeze(2) * k_NE.unsqueeze(1), -1).mean(0)
    cells = [[(f"{value:.2f}", min(4 * value, 1.0)) for value in row] for row in attn_EE.tolist()]
    return cells_svg(
        "Mean attention of an expert (row) to the others (column), last layer; even would be 0.125",
        [f"expert {e}" for e in range(len(cells))],
        cells,
        columns=[str(e) for e in range(len(cells))],
    )


FIGURES: dict[str, Callable[[], str]] = {
    "vision-moe": draw_vision_moe,
    "vqmoe": draw_vqmoe,
    "hyper": draw_hyper,
    "attention": draw_attention,
}


if __name__ == "__main__":
    draw(FIGURES, __doc__ or "")
