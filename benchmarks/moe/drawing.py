"""Curves and tables as SVG in the reader's colour scheme, and the drawing scripts' command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import torch

from crossroads.core.files import write_atomically

COLOURS = ("#00796b", "#c2185b", "#5e35b1", "#ef6c00")
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600 }
.cell { fill: #00796b } polyline { fill: none; stroke-width: 1.8 } .axis { stroke: #90a4ae }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .cell { fill: #4db6ac } }
"""
_LINE = 15.0  # from one line of words to the next
Line = tuple[Sequence[float], Sequence[float]]


def svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(label)}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def text(  # noqa: PLR0917 - a place, the words, how they stand
    x: float, y: float, words: str, anchor: str = "start", cls: str = "", turn: float = 0.0
) -> str:
    turned = f' transform="rotate({turn:.0f} {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text class="{cls}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>'
        f"{escape(words)}</text>"
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers in steps of 1, 2 or 5, the first at or below low, the last above."""
    rough = (high - low) / most
    size = 10.0 ** np.floor(np.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = np.floor(low / step + 1e-9)
    return [float(step * (first + i)) for i in range(int(np.ceil(high / step - first - 1e-9)) + 1)]


def lines_svg(title: str, lines: Mapping[str, Line], *, y_label: str, steps: int) -> str:
    """Return curves over the steps of a training run; each is named at its end."""
    left, top, wide, deep = 70.0, 34.0, 430.0, 190.0
    ys = [y for line in lines.values() for y in line[1]]
    levels = ticks(min(ys), max(ys) + 1e-9)
    low, high = levels[0], levels[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return left + wide * x / steps, top + deep * (high - y) / (high - low)

    parts = [text(8, 20, title, cls="title")]
    parts.append(text(16, top + deep / 2, y_label, "middle", turn=-90))
    parts += [text(left - 8, place(0, y)[1] + 4, f"{y:.4g}", "end") for y in levels]
    rounds = [x for x in ticks(0, steps) if x <= steps]
    parts += [text(place(x, low)[0], top + deep + 18, f"{x:.0f}", "middle") for x in rounds]
    parts.append(text(left + wide / 2, top + deep + 34, "step", "middle"))
    parts.append(
        f'<line class="axis" x1="{left}" y1="{top + deep}" x2="{left + wide}" y2="{top + deep}"/>'
    )
    ends = sorted((place(x[-1], y[-1])[1], name) for name, (x, y) in lines.items())
    at = -np.inf
    for number, (wanted, name) in enumerate(ends):
        lowest = top + deep - 8 - _LINE * (len(ends) - 1 - number)  # above the axis's numbers
        at = max(min(wanted, lowest), at + _LINE)
        colour = COLOURS[list(lines).index(name) % len(COLOURS)]
        points = " ".join(
            f"{a:.1f},{b:.1f}" for a, b in (place(*p) for p in zip(*lines[name], strict=True))
        )
        parts.append(f'<polyline points="{points}" stroke="{colour}"/>')
        parts.append(
            f'<text x="{left + wide + 6}" y="{at + 4:.1f}" style="fill:{colour}">'
            f"{escape(name)}</text>"
        )
    return svg(left + wide + 150, top + deep + 44, title, parts)


def intervals_svg(
    title: str,
    rows: Mapping[str, tuple[float, float, float]],
    *,
    x_label: str,
    marked: Sequence[str],
) -> str:
    """Return a dot and its interval (low, mean, high) a row, beside a line at 0."""
    left, top, wide, step = 16 + 7.4 * max(map(len, rows)), 40.0, 430.0, 20.0
    levels = ticks(
        min(0.0, *(r[0] for r in rows.values())), max(0.0, *(r[2] for r in rows.values()))
    )
    low, high = levels[0], levels[-1]
    foot = top + step * len(rows)

    def x(value: float) -> float:
        return left + wide * (value - low) / (high - low)

    parts = [text(8, 20, title, cls="title")]
    parts += [text(x(level), foot + 14, f"{level:.4g}", "middle") for level in levels]
    parts.append(text(left + wide / 2, foot + 32, x_label, "middle"))
    parts.append(f'<line class="axis" x1="{x(0):.1f}" y1="{top - 8}" x2="{x(0):.1f}" y2="{foot}"/>')
    for number, (name, (least, mean, most)) in enumerate(rows.items()):
        y = top + step * (number + 0.5) - 4
        colour = COLOURS[1 if name in marked else 0]
        parts.append(text(left - 8, y + 4, name, "end"))
        parts.append(
            f'<line stroke="{colour}" x1="{x(least):.1f}" y1="{y:.1f}" x2="{x(most):.1f}" '
            f'y2="{y:.1f}"/><circle fill="{colour}" cx="{x(mean):.1f}" cy="{y:.1f}" r="4"/>'
        )
    return svg(left + wide + 24, foot + 44, title, parts)


def cells_svg(
    title: str,
    rows: Sequence[str],
    cells: Sequence[Sequence[tuple[str, float]]],
    *,
    columns: Sequence[str] = (),
    size: float = 64.0,
) -> str:
    """Return a table of words on squares, shaded by a share in [0, 1]."""
    left = 16 + 7.4 * max(len(row) for row in rows)
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


def draw(figures: Mapping[str, Callable[[], str]], about: str) -> None:
    """Draw the figures named on the command line, or all."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("routers", nargs="*", metavar="router", help=", ".join(figures))
    parser.add_argument("--out", type=Path, default=Path("docs/moe/figures"))
    given = parser.parse_args()
    if wrong := set(given.routers) - set(figures):
        parser.error(f"no figure of {', '.join(sorted(wrong))}; choose from {', '.join(figures)}")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.routers or figures:
        write_atomically(given.out / f"{name}.svg", figures[name]())
