"""Figures of what five routers learned, for their pages: train each bed for minutes, draw SVGs.

    python benchmarks/moe/figures_budgets.py [top-p adamoe omni promoe da-moe] [--out FOLDER]

One seed each; the claims (``crossroads verify``) have the seeds and intervals.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from drawing import cells_svg, draw, lines_svg
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

from crossroads.core.routed import RouteContext, routed_layers
from crossroads.datasets import clinc150
from crossroads.moe.beds import ArenaBed, get_bed
from crossroads.moe.claims import adamoe, da_moe, dynamic_moe, omni_router, promoe
from crossroads.moe.claims.arms import Arm
from crossroads.moe.claims.courses import CourseBed, course_of, probed
from crossroads.moe.claims.intents import held_out
from crossroads.moe.diagnostics import mean_pairwise_cosine
from crossroads.moe.training import Watch, train


def trained(bed: ArenaBed, arm: Arm, watch: Watch | None = None) -> nn.Module:
    return train(bed, arm.spec(bed), bed.config("quick"), watch=watch).model


def draw_top_p() -> str:
    bed = CourseBed()
    lines = {}
    for name, arm in dynamic_moe.ARMS.items():
        course = np.array(course_of(trained(bed, arm)))
        smooth = course[: len(course) // 5 * 5].reshape(-1, 5).mean(1)
        lines[name] = ((np.arange(len(smooth)) * 5 + 2.5).tolist(), smooth.tolist())
    return lines_svg(
        "Experts per token in training (language model)",
        lines,
        y_label="experts per token",
        steps=bed.config("quick").steps,
    )


def draw_adamoe() -> str:
    bed = CourseBed()
    model = trained(bed, adamoe.arms_of(bed)["lean"])
    with torch.no_grad():
        probes = probed(model, bed.probe(model)[0])
    counts = [np.bincount(p.experts_N.astype(int), minlength=4) / len(p.experts_N) for p in probes]
    return cells_svg(
        "Share of bytes by true experts run (3 places, 8 true and 8 null experts)",
        [f"layer {p.layer}" for p in probes],
        [[(f"{share:.0%}", share) for share in line] for line in counts],
        columns=["none", "1", "2", "3"],
    )


def draw_omni() -> str:
    bed = get_bed("speech")
    rows, cells = [], []
    for name in ("omni", "switch"):
        model = trained(bed, omni_router.ARMS[name])
        with torch.no_grad():
            probes = probed(model, bed.probe(model)[0])
        for a in probes:
            shared = [normalized_mutual_info_score(a.top1_N, b.top1_N) for b in probes]
            rows.append(f"{name}, layer {a.layer}")
            cells.append([(f"{value:.2f}", value) for value in shared])
    title = "Information that two layers' experts share about a frame (normalised)"
    return cells_svg(title, rows, cells, columns=[f"layer {p.layer}" for p in probes])


def draw_promoe() -> str:
    bed = get_bed("diffusion")
    lines = {}
    for name in ("promoe", "no contrastive loss"):
        steps: list[float] = []
        cosines: list[float] = []

        def note(
            step: int, model: nn.Module, steps: list[float] = steps, cosines: list[float] = cosines
        ) -> None:
            if step % 5 == 0:
                routers = [layer.routers[0] for layer in routed_layers(model)]
                steps.append(step)
                cosines.append(
                    float(np.mean([mean_pairwise_cosine(r.prototypes) for r in routers]))
                )

        trained(bed, promoe.FLOW_ARMS[name], note)
        lines[name] = (steps, cosines)
    return lines_svg(
        "Mean cosine between prototypes in training (diffusion)",
        lines,
        y_label="mean cosine",
        steps=bed.config("quick").steps,
    )


def draw_da_moe() -> str:
    bed = da_moe.bed_here()
    words = clinc150.load().words
    token_BT, mask_BT, label_B = held_out(9)
    rows, cells = [], []
    for name in da_moe.BY_IMPORTANCE:
        model = trained(bed, da_moe.ARMS[name])
        with torch.no_grad(), da_moe.watched(model) as calls:
            bed.loss(model, (token_BT, mask_BT, label_B), RouteContext())
        count_BT = da_moe.count_of(calls[-1][2])
        scaling = da_moe.ARMS[name].router.partition("normalise=")[2] or "max"
        for number, row in enumerate((1, 4, 7), start=1):
            real = mask_BT[row]
            said = [words[i] for i in token_BT[row][real].tolist()]
            counts = count_BT[row][real].tolist()
            rows.append(f"normalise={scaling}, request {number}")
            cells.append([(f"{w} {k}", k / 4) for w, k in zip(said, counts, strict=True)][:11])
    return cells_svg("Experts of every word, last routed layer (requests)", rows, cells, size=92)


FIGURES: dict[str, Callable[[], str]] = {
    "top-p": draw_top_p,
    "adamoe": draw_adamoe,
    "omni": draw_omni,
    "promoe": draw_promoe,
    "da-moe": draw_da_moe,
}


if __name__ == "__main__":
    draw(FIGURES, __doc__ or "")
