"""Plots of the gateway's benchmarks as SVG, small enough to commit."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

_WIDTH, _LABEL, _BAR, _GAP = 860, 210, 15, 5
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600 }
.number { font-variant-numeric: tabular-nums } .ours { fill: #00796b } .other { fill: #90a4ae }
@media (prefers-color-scheme: dark) { text { fill: #ddd } }
"""


def speed_plot(body: dict[str, Any]) -> str:
    """Return bars of the CPU per request of every server, one panel a scenario."""
    rows = {name: row for name, row in body["servers"].items() if name[-6:] != "direct"
            or name.startswith("crossroads")}  # fmt: skip
    parts: list[str] = []
    y = 10
    for scenario in body["scenarios"]:
        name = scenario["name"]
        values = {server: row[name]["cpu_ms"] for server, row in rows.items()}
        parts.append(
            f'<text class="title" x="8" y="{y + 14}">{escape(name)}: CPU ms a request</text>'
        )
        y += 24
        parts += _bars(values, y)
        y += len(values) * (_BAR + _GAP) + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" '
        f'height="{y}" role="img" aria-label="CPU per request by server">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _bars(values: dict[str, float], y: int) -> list[str]:
    top = max(values.values())
    found = []
    for number, (name, value) in enumerate(values.items()):
        at = y + number * (_BAR + _GAP)
        width = max(1.0, (_WIDTH - _LABEL - 90) * value / top)
        kind = "ours" if name.startswith("crossroads") else "other"
        found.append(
            f'<text x="{_LABEL - 8}" y="{at + 12}" text-anchor="end">{escape(name)}</text>'
        )
        found.append(
            f'<rect class="{kind}" x="{_LABEL}" y="{at}" width="{width:.1f}" height="{_BAR}"/>'
        )
        found.append(
            f'<text class="number" x="{_LABEL + width + 6:.1f}" y="{at + 12}">{value:.3f}</text>'
        )
    return found
