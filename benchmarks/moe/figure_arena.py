"""Figures of the committed arenas of token routers: every arm minus top-2, seed by seed.

python benchmarks/moe/figure_arena.py [arena-lm arena-vision ...] [--out FOLDER]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from drawing import draw, intervals_svg

from crossroads.core.statistics import paired_difference

RESULTS = Path(__file__).parents[1] / "results"
TITLES = {
    "lm": "Language model",
    "vision": "Vision transformer",
    "diffusion": "Diffusion transformer",
    "speech": "Speech encoder",
}
REFERENCE = "top2"


def draw_task(task: str) -> str:
    board = json.loads((RESULTS / f"moe-arena-{task}.json").read_text("utf-8"))
    metric = board["metrics"][0]
    found = {
        row["router"]: row["metrics"][metric["name"]]["per_seed"]
        for row in board["rows"]
        if row["error"] is None
    }
    rows = {}
    for name, values in found.items():
        gap = paired_difference(values, found[REFERENCE])
        assert gap.mean is not None
        rows[name] = (
            (gap.mean, gap.mean, gap.mean) if gap.low is None else (gap.low, gap.mean, gap.high)
        )
    better = "right" if metric["higher_is_better"] else "left"
    return intervals_svg(
        f"{TITLES[task]}: {metric['title']} minus that of {REFERENCE}, {len(board['seeds'])} seeds",
        rows,
        x_label=f"difference with its 95 % interval; better is to the {better}; baselines in red",
        marked=board["baselines"],
    )


FIGURES: dict[str, Callable[[], str]] = {
    f"arena-{task}": partial(draw_task, task) for task in TITLES
}


if __name__ == "__main__":
    draw(FIGURES, __doc__ or "")
