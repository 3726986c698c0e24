"""What it takes to load adapters from files: folders of 12, 25, 50 and 100 of SmolLM2-135M's size.

Adapters are random, r = 8 on q and v of every block, written to a temporary folder in PEFT's
layout. Every round reads each folder once, in random order: CPU time of the process on one thread,
with the files in the memory of the system. Takes a minute. Writes
``benchmarks/results/adapters-loading.json``.

    python benchmarks/adapters/loading.py [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

for _library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_library, "1")

import torch
from timing import load

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.layout import read_bank, save_bank
from crossroads.core.files import write_atomically
from crossroads.core.progress import progress_bar
from crossroads.core.provenance import machine

RESULT = Path(__file__).parents[1] / "results" / "adapters-loading.json"
LIBRARIES = ("crossroads", "torch", "safetensors")
COUNTS = (12, 25, 50, 100)
BLOCKS, WIDTH, OUTPUTS, RANK = 30, 576, {"q_proj": 576, "v_proj": 192}, 8


def expert(name: str, seed: int) -> Expert:
    draw = torch.Generator().manual_seed(seed)
    return Expert(
        name=name,
        modules={
            f"model.layers.{block}.self_attn.{end}": LoRA(
                a_RI=0.04 * torch.randn(RANK, WIDTH, generator=draw),
                b_OR=0.04 * torch.randn(outputs, RANK, generator=draw),
                scale=2.0,
            )
            for block in range(BLOCKS)
            for end, outputs in OUTPUTS.items()
        },
    )


def written(folder: Path) -> dict[int, Path]:
    """Return a folder of adapters by their number."""
    every = [expert(f"e{place}", place) for place in range(max(COUNTS))]
    found = {count: folder / f"of-{count}" for count in COUNTS}
    for count, place in found.items():
        save_bank(place, AdapterBank(every[:count]))
    return found


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def timed(folders: dict[int, Path], rounds: int) -> dict[int, list[float]]:
    """Return seconds of CPU time by number of adapters, after a round that counts for nothing."""
    order = random.Random(0)
    spent: dict[int, list[float]] = {count: [] for count in COUNTS}
    with progress_bar("rounds") as told:
        for done in range(rounds + 1):
            for count in order.sample(COUNTS, len(COUNTS)):
                start = time.process_time()
                bank, _ = read_bank(folders[count])
                seconds = time.process_time() - start
                assert bank.n_experts == count
                if done:
                    spent[count].append(seconds)
            told(done, rounds)
    return spent


def held(bank: AdapterBank) -> int:
    """Return the bytes of a bank's numbers."""
    return sum(values.nbytes for values in (*bank.parameters(), *bank.buffers()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folders = written(Path(folder))
        spent = timed(folders, options.rounds)
        figures: dict[str, Any] = {
            str(count): {
                "median_s": round(statistics.median(spent[count]), 3),
                "best_s": round(min(spent[count]), 3),
                "rounds": len(spent[count]),
                "file_bytes": size(place),
                "bank_bytes": held(read_bank(place)[0]),
            }
            for count, place in folders.items()
        }
    body = {
        "what": "Adapters of SmolLM2-135M's size (r 8 on q and v) read from files, on one thread.",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(LIBRARIES),
        "threads": 1,
        "load": load(),
        "adapters": figures,
    }
    write_atomically(options.out, json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
