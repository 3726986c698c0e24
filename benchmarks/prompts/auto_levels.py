"""Does ``auto`` reach its levels, and what does each member add? Replayed tables, 3 seeds, 70/30.

Cases whose data set is absent (``CROSSROADS_DATA``: texts, and tables that do not ship) are left
out. The first run with MiniLM encodes 12,032 questions, some minutes on one core, and caches them.

    python benchmarks/prompts/auto_levels.py [--encoders static+minilm]

Writes ``benchmarks/results/prompts-auto-levels.json``: {machine, seeds, levels: [{case, encoder,
metric, wanted, measured, per_seed, reached}], rows: [{case, encoder, router, fit_seconds,
cpu_seconds, metrics: {name: [one figure a seed]}}]}. Where a quality is never reached, the cost to
match it is null and no level holds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(library, "1")

import numpy as np

from crossroads.core.arena import Cell
from crossroads.core.errors import UnavailableError
from crossroads.core.files import replacing
from crossroads.core.preference import hull_quality_at, upper_hull
from crossroads.core.provenance import machine
from crossroads.datasets.paths import data_folder
from crossroads.prompts import ModelCard, OutcomeTable, Pool, load_embedded, read_outcomes
from crossroads.prompts.tasks import PromptTask, prompt_task

TARGET = Path(__file__).parents[1] / "results" / "prompts-auto-levels.json"
SEEDS = (0, 1, 2)
KEPT = ("gain_over_best_single", "aiq", "cost_at_equal_quality", "apgr", "latency_us_p50", "cpu_us")

BASELINES = ("best-single", "category", "knn", "ridge", "boosting", "auto", "oracle")
MEMBERS = ("domains", "subjects", "landmarks", "linear", "words")
ABLATIONS = (
    *("auto:members=" + "+".join(m for m in MEMBERS if m != left_out) for left_out in MEMBERS),
    *(f"auto:members={member}" for member in MEMBERS),
)

# USD per million tokens in and out, list prices of 2024 by model or hosted size class. Declared,
# not billed: the shipped pool prices 13 of the 29 models that answered both ZeroEval tasks.
ZEROEVAL_PRICES = {
    "o1-mini-2024-09-12": (3, 12),
    "claude-3-5-sonnet-20241022": (3, 15),
    "claude-3-5-sonnet-20240620": (3, 15),
    "gpt-4o-2024-08-06": (2.5, 10),
    "gpt-4o-2024-05-13": (5, 15),
    "gpt-4o-mini-2024-07-18": (0.15, 0.6),
    "Mistral-Large-2": (2, 6),
    "Llama-3.1-405B-Instruct": (3.5, 3.5),
    "claude-3-5-haiku-20241022": (0.8, 4),
    "deepseek-v2.5-0908": (0.14, 0.28),
    "Meta-Llama-3.1-70B-Instruct": (0.88, 0.88),
    "claude-3-opus-20240229": (15, 75),
    "gemini-1.5-pro": (1.25, 5),
    "Qwen2-72B-Instruct": (0.9, 0.9),
    "gemini-1.5-flash": (0.075, 0.3),
    "Meta-Llama-3-70B-Instruct": (0.88, 0.88),
    "gemma-2-27b-it": (0.8, 0.8),
    "reka-core-20240501": (2, 6),
    "Athene-70B": (0.88, 0.88),
    "gemma-2-9b-it": (0.3, 0.3),
    "Yi-1.5-34B-Chat": (0.8, 0.8),
    "claude-3-haiku-20240307": (0.25, 1.25),
    "Meta-Llama-3.1-8B-Instruct": (0.18, 0.18),
    "Phi-3.5-mini-instruct": (0.1, 0.1),
    "Qwen2-7B-Instruct": (0.2, 0.2),
    "Yi-1.5-9B-Chat": (0.3, 0.3),
    "gpt-3.5-turbo-0125": (0.5, 1.5),
    "Meta-Llama-3-8B-Instruct": (0.2, 0.2),
    "gemma-2-2b-it": (0.1, 0.1),
}


def zeroeval() -> OutcomeTable:
    """Return the 29 models that answered both tasks, at the prices above."""
    cards = tuple(
        ModelCard(name=name, price_in=price_in, price_out=price_out)
        for name, (price_in, price_out) in ZEROEVAL_PRICES.items()
    )
    pool = Pool(name="zeroeval-29", models=cards)
    return read_outcomes(data_folder("zeroeval_outcomes"), pool=pool, models=tuple(ZEROEVAL_PRICES))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A table to route on, and the routers to run on it with each encoder."""

    table: Callable[[], OutcomeTable]
    routers: dict[str, tuple[str, ...]]


CASES = {
    "served": Case(
        table=lambda: load_embedded("served", with_text=True),
        routers={"static": (*BASELINES, *ABLATIONS), "minilm": (*BASELINES, *ABLATIONS)},
    ),
    "served without texts": Case(
        table=lambda: load_embedded("served"), routers={"static": BASELINES}
    ),
    "small": Case(
        table=lambda: load_embedded("small", with_text=True), routers={"static": BASELINES}
    ),
    "complete": Case(
        table=lambda: load_embedded("complete", with_text=True),
        routers={"static": BASELINES, "minilm": ("best-single", "auto")},
    ),
    "zeroeval": Case(table=zeroeval, routers={"static": BASELINES}),
    "routellm": Case(
        table=lambda: read_outcomes(data_folder("routellm_mmlu_gsm8k")),
        routers={"static": BASELINES, "minilm": ("best-single", "category", "auto")},
    ),
}
# (case, encoder, metric, level, whether more is better), on the mean of the seeds
LEVELS = (
    ("served", "static", "gain_over_best_single", 1.1, True),
    ("served", "static", "gain_over_best_single", 1.3, True),
    ("served", "static", "aiq", 68.4, True),
    ("served", "static", "cost_at_equal_quality", 0.80, False),
    ("served", "static", "latency_us_p50", 150.0, False),
    ("served", "minilm", "gain_over_best_single", 1.4, True),
    ("served", "minilm", "gain_over_best_single", 1.6, True),
    ("served", "minilm", "aiq", 68.4, True),
    ("served", "minilm", "cost_at_equal_quality", 0.80, False),
    ("served without texts", "static", "gain_over_best_single", 1.1, True),
    ("served without texts", "static", "aiq", 68.4, True),
    ("complete", "static", "gain_over_best_single", -0.1, True),
    ("complete", "minilm", "gain_over_best_single", -0.1, True),
    ("zeroeval", "static", "gain_over_best_single", -0.5, True),
    ("zeroeval", "static", "cost_at_equal_quality", 0.87, False),
    ("zeroeval", "static", "mean_cost_at_equal_quality", 0.87, False),
    ("routellm", "static", "apgr", 0.68, True),
    ("routellm", "minilm", "apgr", 0.68, True),
)


def measure(task: PromptTask, router: str) -> dict[str, Any]:
    """Return the figures of one router, one a seed."""
    started = time.process_time()
    cells = [task.run(router, seed) for seed in SEEDS]
    metrics = {
        name: [round(cell.metrics[name], 4) for cell in cells]
        for name in KEPT
        if name in cells[0].metrics
    }
    metrics["mean_cost_at_equal_quality"] = [mean_cost_at_equal_quality(cells)]
    return {
        "router": router,
        "fit_seconds": [round(cell.fit_seconds, 3) for cell in cells],
        "cpu_seconds": round(time.process_time() - started, 2),
        "metrics": metrics,
    }


def mean_cost_at_equal_quality(cells: list[Cell]) -> float:
    """Return the smallest relative cost at which the seeds' mean gap to the best single closes.

    On one seed the judged prompts may favour the best single model by luck, and no cost reaches it;
    the mean curve over the seeds says what is to be expected. inf where it never closes.
    """
    share = np.linspace(0.01, 1.2, 1200)
    gaps = []
    for cell in cells:
        if "hull" not in cell.curves:
            return float("nan")
        best = cell.notes["models"].index(cell.notes["best_single"])
        cost, quality = cell.curves["singles"][best]
        hull = np.array(cell.curves["hull"])
        gaps.append(hull_quality_at(upper_hull(hull[:, 0], hull[:, 1]), share * cost) - quality)
    reached = np.flatnonzero(np.mean(gaps, axis=0) >= 0)
    return float(np.round(share[reached[0]], 4)) if len(reached) else float("inf")


def rows(encoders: list[str]) -> Iterator[dict[str, Any]]:
    for name, case in CASES.items():
        try:
            table = case.table()
        except UnavailableError as error:
            print(f"{name}: left out, {error}")
            continue
        for encoder in encoders:
            if encoder not in case.routers:
                continue
            task = prompt_task(table, name=name, encoder=encoder)
            for router in case.routers[encoder]:
                row = {"case": name, "encoder": encoder, **measure(task, router)}
                figures = {m: float(np.mean(v)) for m, v in row["metrics"].items()}
                print(name, encoder, router, {m: round(v, 3) for m, v in figures.items()})
                yield row


def levels(measured: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    found = {(r["case"], r["encoder"]): r["metrics"] for r in measured if r["router"] == "auto"}
    for case, encoder, metric, wanted, more_is_better in LEVELS:
        if (case, encoder) not in found:
            continue
        per_seed = found[case, encoder][metric]
        mean = float(np.mean(per_seed))
        reached = mean >= wanted if more_is_better else mean <= wanted
        yield {
            "case": case,
            "encoder": encoder,
            "metric": metric,
            "wanted": wanted,
            "measured": round(mean, 4),
            "per_seed": per_seed,
            "reached": reached,
        }


def finite(value: Any) -> Any:
    """Return plain JSON: infinity, a quality never reached, is null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", default="static+minilm")
    measured = list(rows(parser.parse_args().encoders.split("+")))
    result = {
        "machine": machine(),
        "seeds": list(SEEDS),
        "levels": list(levels(measured)),
        "rows": measured,
    }
    for level in result["levels"]:
        print(level)
    with replacing(TARGET) as partial:
        partial.write_text(json.dumps(finite(result), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
