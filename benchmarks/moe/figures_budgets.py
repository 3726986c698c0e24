"""Figures of what five routers learned, for their pages: train each bed for minutes, draw SVGs.

    python benchmarks/moe/figures_budgets.py [top-p adamoe omni promoe da-moe] [--out FOLDER]

One seed each; the claims (``crossroads verify``) have the seeds and intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

from crossroads.core.files import write_atomically
from crossroads.core.routed import RouteContext, routed_layers
from crossroads.datasets import clinc150
from crossroads.moe.beds import ArenaBed, get_bed
from crossroads.moe.claims import adamoe, da_moe, dynamic_moe, omni_router, promoe
from crossroads.moe.claims.arms import Arm
from crossroads.moe.claims.courses import CourseBed, course_of, probed
from crossroads.moe.claims.intents import held_out
from crossroads.moe.diagnostics import mean_pairwise_cosine
from crossroads.moe.training import Watch, train

COLOURS = ("#00796b", "#c2185b", "#5e35b1", "#ef6c00")
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600 }
.cell { fill: #00796b } polyline { fill: none; stroke-width: 1.8 } .axis { stroke: #90a4ae }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .cell { fill: #4db6ac } }
"""
Line = tuple[Sequence[float], Sequence[float]]


def svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(label)}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def text(x: float, y: float, words: str, anchor: str = "start", cls: str = "") -> str:
    return (
        f'<text class="{cls}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def lines_svg(title: str, lines: Mapping[str, Line]) -> str:
    """Return curves over training steps; each is named at its end."""
    left, top, wide, deep = 50.0, 34.0, 430.0, 190.0
    xs = [x for line in lines.values() for x in line[0]]
    ys = [y for line in lines.values() for y in line[1]]
    low, high = min(ys), max(ys) + 1e-9

    def place(x: float, y: float) -> tuple[float, float]:
        return left + wide * x / max(xs), top + deep * (high - y) / (high - low)

    parts = [text(left, 20, title, cls="title")]
    parts += [text(left - 8, place(0, y)[1] + 4, f"{y:.2f}", "end") for y in (low, high)]
    parts += [text(place(x, low)[0], top + deep + 18, f"{x:.0f}", "middle") for x in (0, max(xs))]
    parts.append(text(left + wide / 2, top + deep + 18, "step", "middle"))
    parts.append(
        f'<line class="axis" x1="{left}" y1="{top + deep}" x2="{left + wide}" y2="{top + deep}"/>'
    )
    ends = sorted((place(x[-1], y[-1])[1], name) for name, (x, y) in lines.items())
    at = -np.inf
    for wanted, name in ends:
        at = max(wanted, at + 15)
        colour = COLOURS[list(lines).index(name) % len(COLOURS)]
        points = " ".join(
            f"{a:.1f},{b:.1f}" for a, b in (place(*p) for p in zip(*lines[name], strict=True))
        )
        parts.append(f'<polyline points="{points}" stroke="{colour}"/>')
        parts.append(
            f'<text x="{left + wide + 6}" y="{at + 4:.1f}" style="fill:{colour}">'
            f"{escape(name)}</text>"
        )
    return svg(left + wide + 150, top + deep + 30, title, parts)


def cells_svg(
    title: str,
    rows: Sequence[str],
    cells: Sequence[Sequence[tuple[str, float]]],
    *,
    columns: Sequence[str] = (),
    size: float = 64.0,
) -> str:
    """Return a table of words on squares, shaded by a share in [0, 1]."""
    left = 12 + 6.6 * max(len(row) for row in rows)
    top = 54.0 if columns else 34.0
    parts = [text(8, 20, title, cls="title")]
    parts += [text(left + (i + 0.5) * size, 44, name, "middle") for i, name in enumerate(columns)]
    for number, (name, line) in enumerate(zip(rows, cells, strict=True)):
        y = top + 30 * number
        parts.append(text(left - 8, y + 18, name, "end"))
        for i, (word, shade) in enumerate(line):
            x = left + i * size
            parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{size - 2:.1f}" height="28" '
                f'rx="3" fill-opacity="{0.05 + 0.5 * shade:.2f}"/>'
            )
            parts.append(text(x + size / 2 - 1, y + 18, word, "middle"))
    wide = max(left + size * max(len(line) for line in cells), 8 + 7 * len(title))
    return svg(wide + 8, top + 30 * len(rows) + 6, title, parts)


def trained(bed: ArenaBed, arm: Arm, watch: Watch | None = None) -> nn.Module:
    return train(bed, arm.spec(bed), bed.config("quick"), watch=watch).model


def draw_top_p() -> str:
    bed = CourseBed()
    lines = {}
    for name, arm in dynamic_moe.ARMS.items():
        course = np.array(course_of(trained(bed, arm)))
        smooth = course[: len(course) // 5 * 5].reshape(-1, 5).mean(1)
        lines[name] = ((np.arange(len(smooth)) * 5 + 2.5).tolist(), smooth.tolist())
    return lines_svg("Experts per token in training (language model)", lines)


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
    return lines_svg("Mean cosine between prototypes in training (diffusion)", lines)


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
        for row in (1, 4, 7):
            real = mask_BT[row]
            said = [words[i] for i in token_BT[row][real].tolist()]
            counts = count_BT[row][real].tolist()
            rows.append({"da-moe": "largest = 1"}.get(name, name))
            cells.append([(f"{w} {k}", k / 4) for w, k in zip(said, counts, strict=True)][:11])
    return cells_svg("Experts of every word, last routed layer (requests)", rows, cells, size=92)


FIGURES: dict[str, Callable[[], str]] = {
    "top-p": draw_top_p,
    "adamoe": draw_adamoe,
    "omni": draw_omni,
    "promoe": draw_promoe,
    "da-moe": draw_da_moe,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("routers", nargs="*", metavar="router", help=", ".join(FIGURES))
    parser.add_argument("--out", type=Path, default=Path("docs/moe/figures"))
    given = parser.parse_args()
    if wrong := set(given.routers) - set(FIGURES):
        parser.error(f"no figure of {', '.join(sorted(wrong))}; choose from {', '.join(FIGURES)}")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.routers or FIGURES:
        write_atomically(given.out / f"{name}.svg", FIGURES[name]())


if __name__ == "__main__":
    main()
