"""Does `auto` keep what it promises, with static embeddings and with MiniLM?

Runs the arena on the shipped pools, and, where the published data sets are at hand
(``CROSSROADS_DATA``), on their prompts' own texts: with texts `auto` reads words too, and MiniLM
can embed them. Each figure: mean over three paired seeds, and the seeds.

    python benchmarks/prompts/auto_levels.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from crossroads.core.arena import run_arena
from crossroads.core.errors import CrossroadsError
from crossroads.core.provenance import machine
from crossroads.datasets.paths import data_folder
from crossroads.prompts import read_outcomes, read_pool
from crossroads.prompts.tasks import prompt_task

RESULT = Path(__file__).parents[1] / "results" / "prompts-auto-levels.json"
METRICS = ("gain_over_best_single", "aiq", "cost_at_equal_quality", "apgr")


def level(table: Any, encoder: str) -> dict[str, Any]:
    board = run_arena(prompt_task(table, encoder=encoder), ["auto"], seeds=3)
    auto = board["auto"].metrics
    return {
        name: {"mean": auto[name].mean, "per_seed": list(auto[name].per_seed)}
        for name in METRICS
        if name in auto
    }


def main() -> None:
    figures: dict[str, Any] = {}
    for pool in ("served", "small", "complete"):
        figures[f"mmlu-pro:{pool}, static, embeddings only"] = level(
            read_outcomes(f"mmlu-pro:{pool}"), "static"
        )
    try:
        mmlu_pro, routellm = data_folder("mmlu_pro_outcomes"), data_folder("routellm_mmlu_gsm8k")
    except CrossroadsError as error:
        print(f"published data sets left out: {error}", file=sys.stderr)
    else:
        served = read_outcomes(mmlu_pro, models=read_pool("mmlu-pro:served").names)
        for encoder in ("static", "minilm"):
            figures[f"mmlu-pro served with texts, {encoder}"] = level(served, encoder)
        figures["routellm mmlu + gsm8k with texts, static"] = level(
            read_outcomes(routellm), "static"
        )
    result = {"machine": machine(), "seeds": [0, 1, 2], "split": "70/30 by hash", "auto": figures}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    sys.exit(main())
