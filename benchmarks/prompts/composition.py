"""What does a composition of experts gain, in what budget, and how often does it move weights?

The claim of Composition of Experts (``crossroads verify composition-of-experts``), the worth of
label expansion from few labels, and swaps of an expert cache, on the shipped MMLU-Pro outcomes, 3
seeds; (b) of the claim also takes RouteLLM's MMLU where it is (``CROSSROADS_DATA``).

    python benchmarks/prompts/composition.py

Writes ``benchmarks/results/prompts-composition.json``: {machine, claim, labels: [{labels, few,
spread, pseudo}], cache: [{capacity_gb, policy, group, swaps_per_1k, gb_per_1k}]}, one figure a seed
where it is a list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(library, "1")

import numpy as np

from crossroads.core.files import write_atomically
from crossroads.core.provenance import machine
from crossroads.prompts.claims.composition_of_experts import SEEDS, few_labels, verify
from crossroads.prompts.composition import model_sizes, replay
from crossroads.prompts.embedded import load_embedded
from crossroads.prompts.features import queries, training_set
from crossroads.prompts.pool import read_pool
from crossroads.prompts.routers import build_router

TARGET = Path(__file__).parents[1] / "results" / "prompts-composition.json"
LABELS = (2, 5, 10, 20, 50)  # a category
BYTES = 2  # a parameter, in 16 bits
CAPACITIES_GB = (16, 24, 32)
POLICIES = (("lru", 1), ("lfu", 1), ("belady", 1), ("lru", 8), ("lru", 32))


def labels() -> Iterator[dict[str, Any]]:
    table = load_embedded("small")
    for count in LABELS:
        rows = [few_labels(table, seed, count) for seed in SEEDS]
        names = ("few", "spread", "pseudo")
        row = {"labels": count, **{n: [round(r[n], 4) for r in rows] for n in names}}
        print(row)
        yield row


def streams() -> tuple[list[list[str]], dict[str, int]]:
    """Return the experts a composition of the small models sends test prompts to, a list a seed."""
    table = load_embedded("small")
    features, size_K = (
        table.embeddings["static"],
        model_sizes(table.models, pool=read_pool("mmlu-pro")),
    )
    found = []
    for seed in SEEDS:
        train, test = table.split_by_hash(seed)
        test = np.random.default_rng(seed).permutation(test)
        router = build_router("composition").fit(training_set(table, train, features), seed=seed)
        chosen = router.predict(queries(table, test, features)).argmax(axis=1)
        found.append([table.models[k] for k in chosen])
    return found, {m: int(s) * BYTES for m, s in zip(table.models, size_K, strict=True)}


def cache() -> Iterator[dict[str, Any]]:
    asked, sizes = streams()
    for capacity in CAPACITIES_GB:
        for policy, group in POLICIES:
            runs = [
                replay(stream, sizes, capacity * 10**9, policy=policy, group=group)
                for stream in asked
            ]
            row = {
                "capacity_gb": capacity,
                "policy": policy,
                "group": group,
                "swaps_per_1k": [round(c.swaps_per_1k, 1) for c in runs],
                "gb_per_1k": [round(c.bytes_per_1k / 1e9, 1) for c in runs],
            }
            print(row)
            yield row


def main() -> None:
    result = {
        "machine": machine(),
        "seeds": SEEDS,
        "labels": list(labels()),
        "cache": list(cache()),
        "claim": verify(False).to_dict(),
    }
    write_atomically(TARGET, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["claim"], indent=1))


if __name__ == "__main__":
    main()
