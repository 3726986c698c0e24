"""The HTML page of an evaluation: intervals drawn as SVG, everything inside one file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from crossroads import __version__
from crossroads.core.files import write_atomically
from crossroads.gateway.evaluation.intervals import Interval
from crossroads.gateway.evaluation.off_policy import Evaluation

_WIDTH, _LEFT, _RIGHT, _ROW = 480.0, 120.0, 24.0, 28.0
_LEAST_TICKS, _MOST_TICKS = 4, 6
_NAMES = {
    "ips": "IPS",
    "snips": "SNIPS",
    "clipped_ips": "clipped IPS",
    "dm": "direct method",
    "dr": "doubly robust",
    "switch_dr": "switch DR",
}


@dataclass(frozen=True, slots=True)
class _Dot:
    """A row of a plot: positions in the drawing's units; ``text`` is read out and hovered."""

    name: str
    text: str
    y: float
    x: float
    low: float
    high: float
    is_reference: bool


@dataclass(frozen=True, slots=True)
class _Plot:
    title: str
    caption: str
    dots: tuple[_Dot, ...]
    ticks: tuple[tuple[float, str], ...]
    height: float
    zero: float | None
    width: float = _WIDTH
    left: float = _LEFT


def write_page(found: Evaluation, folder: Path, *, source: str) -> Path:
    """Write ``evaluation.html`` and return its path. Raises InputError where it cannot."""
    path = folder / "evaluation.html"
    write_atomically(path, render_page(found, source=source))
    return path


def render_page(found: Evaluation, *, source: str) -> str:
    """Return the page as one HTML document that loads nothing."""
    from jinja2 import Environment, StrictUndefined

    template = resources.files(__package__).joinpath("page.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        found=found,
        plots=_plots(found),
        source=source,
        version=__version__,
        names=_NAMES,
        figures=_figures(found),
        percent=100 * found.level,
    )


def _figures(found: Evaluation) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return every number that is drawn, in the order of the table's columns."""
    nothing = "", ""
    served = "served", [_told(found.served), nothing, _told(found.served_cost), nothing]
    drawn = (found.value, found.difference, found.cost, found.cost_difference)
    rows = [
        (title, [_told(column[name]) for column in drawn])
        for name, title in _NAMES.items()
        if found.value[name].value is not None
    ]
    return [served, *rows]


def _told(each: Interval) -> tuple[str, str]:
    """Return the estimate and its interval in words, "" for what is not known."""
    if each.value is None:
        return "", ""
    ends = f"[{each.low:.3g}, {each.high:.3g}]" if None not in (each.low, each.high) else ""
    return f"{each.value:.3g}", ends


def _plots(found: Evaluation) -> list[_Plot]:
    reward = "Mean reward of a call, in [0, 1]. The direct method's bar does not show its bias."
    cost_less = "Mean cost less that of what was served, USD."
    parts = (
        ("Reward", reward, found.value, found.served, False),
        ("Gain", "Mean reward less that of what was served.", found.difference, None, True),
        ("Cost", "Mean cost of a call, USD.", found.cost, found.served_cost, False),
        ("Cost less served", cost_less, found.cost_difference, None, True),
    )
    plots = []
    for title, caption, intervals, served, has_zero in parts:
        rows = {_NAMES[name]: each for name, each in intervals.items()}
        if served is not None:
            rows["served"] = served
        plot = _plot(title, caption, rows, has_zero=has_zero)
        if plot is not None:
            plots.append(plot)
    return plots


def _plot(
    title: str, caption: str, rows: Mapping[str, Interval], *, has_zero: bool
) -> _Plot | None:
    known = {name: each for name, each in rows.items() if each.value is not None}
    if not known or set(known) == {"served"}:
        return None
    ends = [0.0] if has_zero else []
    for each in known.values():
        ends += [v for v in (each.value, each.low, each.high) if v is not None]
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1e-6
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    dots = []
    for n, (name, each) in enumerate(known.items()):
        middle = each.value if each.value is not None else 0.0
        left = middle if each.low is None else each.low
        right = middle if each.high is None else each.high
        dots.append(
            _Dot(
                name=name,
                text=f"{name}: {' '.join(_told(each)).strip()}",
                y=_ROW * (n + 0.5),
                x=place(middle),
                low=place(left),
                high=place(right),
                is_reference=name == "served",
            )
        )
    return _Plot(
        title=title,
        caption=caption,
        dots=tuple(dots),
        ticks=tuple((place(value), f"{value:.6g}") for value in _round_values(low, high)),
        height=_ROW * len(dots),
        zero=place(0.0) if has_zero else None,
    )


def _round_values(low: float, high: float) -> list[float]:
    """Return up to six values within, all multiples of 1, 2 or 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10((high - low) / _LEAST_TICKS))
    for step in (unit, 2 * unit, 5 * unit, 10 * unit):
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first < _MOST_TICKS:
            break
    return [n * step for n in range(first, last + 1)]
