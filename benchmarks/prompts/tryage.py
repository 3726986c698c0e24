"""How many prompts with known losses does Tryage's router need? Six trained experts, 3 seeds.

Experts and losses are those of ``crossroads verify tryage``: trained on the first run (some minutes
on one core), then read from the cache. For each number of training prompts the router is fitted
and chooses on the same test prompts; beside it the card router, which needs none.

    python benchmarks/prompts/tryage.py

Writes ``benchmarks/results/prompts-tryage.json``: {question, machine, seeds, experts, parameters,
cards: {figure: [a seed]}, rows: [{train_prompts, fit_cpu_s: [], figures: {figure: [a seed]}}]}.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(library, "1")

import numpy as np

from crossroads.core.files import write_atomically
from crossroads.core.provenance import machine
from crossroads.prompts.claims.tryage import SEEDS, Library, build_library
from crossroads.prompts.tryage.cards import choose_by_card
from crossroads.prompts.tryage.corpora import load_corpora
from crossroads.prompts.tryage.measure import choice_figures, one_hot
from crossroads.prompts.tryage.predictor import fit_predictor

TARGET = Path(__file__).parents[1] / "results" / "prompts-tryage.json"
SIZES = (30, 60, 120, 300, 600, 1200)
FIGURES = ("loss", "regret", "agreement", "gap_closed")


def measured(library: Library, choice: Any, seed: int) -> dict[str, Any]:
    """Return the figures of choices among the larger experts for one seed's test prompts."""
    train, test = library.prompts.split(seed)
    losses = library.losses[:, : library.num_domains]
    single = int(losses[train].mean(axis=0).argmin())
    share = one_hot(choice, library.num_domains)
    return choice_figures(share, losses[test], best_single=single).to_dict()


def learned(library: Library, num_prompts: int, seed: int) -> tuple[dict[str, Any], float]:
    """Return the figures and the CPU seconds of a router fitted on so many prompts."""
    train, test = library.prompts.split(seed)
    rows = np.random.default_rng(seed).permutation(train)[:num_prompts]
    losses = library.losses[rows, : library.num_domains]
    start = time.process_time()
    predictor = fit_predictor(library.embeddings[rows], losses, rng=np.random.default_rng(seed))
    seconds = time.process_time() - start
    choice = predictor.predict(library.embeddings[test]).argmin(axis=1)
    return measured(library, choice, seed), seconds


def by_figure(found: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {name: [round(one[name], 4) for one in found] for name in FIGURES}


def main() -> None:
    library = build_library(load_corpora(), per_domain=300, seed=SEEDS[0])
    larger = library.pool.subset(library.pool.names[: library.num_domains])
    cards = []
    for seed in SEEDS:
        texts = library.prompts.texts[library.prompts.split(seed)[1]].tolist()
        cards.append(measured(library, choose_by_card(larger, texts), seed))
    rows = []
    for size in SIZES:
        found = [learned(library, size, seed) for seed in SEEDS]
        rows.append(
            {
                "train_prompts": size,
                "fit_cpu_s": [round(seconds, 2) for _, seconds in found],
                "figures": by_figure([figures for figures, _ in found]),
            }
        )
    report = {
        "question": "agreement and loss by number of training prompts",
        "machine": machine(("crossroads", "numpy", "torch")),
        "seeds": list(SEEDS),
        "experts": list(larger.names),
        "parameters": [card.parameters for card in larger],
        "cards": by_figure(cards),
        "rows": rows,
    }
    write_atomically(TARGET, json.dumps(report, indent=1) + "\n")
    for row in rows:
        means = {name: round(float(np.mean(row["figures"][name])), 3) for name in FIGURES}
        print(f"{row['train_prompts']:5} prompts  {means}")


if __name__ == "__main__":
    main()
