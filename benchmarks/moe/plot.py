"""The plot of benchmarks/moe as SVG, small enough to commit."""

from __future__ import annotations

import math
from typing import Any
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _PANEL = 860, 300, 60, 34, 340
_DEEP = 200
_COLOURS = {"float32": "#00796b", "bfloat16": "#c2185b"}
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600 }
line, polyline { fill: none; stroke-width: 1.5 } .axis { stroke: #90a4ae }
.ideal { stroke: #90a4ae; stroke-dasharray: 4 4 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } }
"""


def scaling_plot(found: dict[str, dict[str, float]]) -> str:
    """Return two log-log panels: time by tokens, and by experts; dashed: proportional, flat."""
    proportional = [
        list(line.values())[-1] * int(min(line, key=int)) / int(max(line, key=int))
        for name, line in found.items()
        if name.startswith("tokens")
    ]
    low = min(*proportional, *(min(line.values()) for line in found.values())) / 1.3
    high = max(max(line.values()) for line in found.values()) * 1.3
    parts = []
    for number, axis in enumerate(("tokens", "experts")):
        lines = {k.split(", ")[1]: v for k, v in found.items() if k.startswith(axis)}
        parts += _panel(axis, lines, _LEFT + number * (_PANEL + 80), (low, high))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="Time of a forward by tokens '
        f'and by experts"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _panel(
    axis: str, lines: dict[str, dict[str, float]], left: float, span: tuple[float, float]
) -> list[str]:
    values = [int(value) for value in next(iter(lines.values()))]

    def x(value: float) -> float:
        return left + _PANEL * math.log(value / values[0]) / math.log(values[-1] / values[0])

    def y(ms: float) -> float:
        return _TOP + _DEEP * math.log(span[1] / ms) / math.log(span[1] / span[0])

    bottom = _TOP + _DEEP
    parts = [
        f'<text class="title" x="{left}" y="20">{escape(axis)}: CPU ms of a forward</text>',
        f'<line class="axis" x1="{left}" y1="{bottom}" x2="{left + _PANEL}" y2="{bottom}"/>',
        f'<line class="axis" x1="{left}" y1="{_TOP}" x2="{left}" y2="{bottom}"/>',
    ]
    parts += [
        f'<text x="{x(value):.1f}" y="{bottom + 18}" text-anchor="middle">{value}</text>'
        for value in values
    ]
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500) if span[0] <= t <= span[1]]
    parts += [
        f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>'
        for tick in ticks
    ]
    for name, line in lines.items():
        points = [(int(value), ms) for value, ms in line.items()]
        parts += _line(points, x, y, _COLOURS[name], name, grows=axis == "tokens")
    return parts


def _line(points: Any, x: Any, y: Any, colour: str, name: str, *, grows: bool) -> list[str]:
    path = " ".join(f"{x(value):.1f},{y(ms):.1f}" for value, ms in points)
    value, ms = points[-1] if grows else points[0]
    ideal = " ".join(f"{x(v):.1f},{y(ms * v / value if grows else ms):.1f}" for v, _ in points)
    at = points[-1]
    return [
        f'<polyline class="ideal" points="{ideal}"/>',
        f'<polyline points="{path}" stroke="{colour}"/>',
        f'<text x="{x(at[0]) - 4:.1f}" y="{y(at[1]) - 8:.1f}" text-anchor="end" '
        f'style="fill:{colour}">{escape(name)}</text>',
    ]
