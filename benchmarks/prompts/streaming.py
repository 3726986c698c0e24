"""A table of a million prompts and ten models, compared within 4 GiB.

The table is simulated: prompts and outcomes of MMLU-Pro are drawn with replacement, and a number
is added to each text so that no two are the same. Quality figures therefore say nothing; memory
and time are what is measured: the peak resident size of the command and of all its processes,
sampled twenty times a second.

    python benchmarks/prompts/streaming.py [--prompts 1000000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from crossroads.core.provenance import machine
from crossroads.datasets.paths import data_folder
from crossroads.prompts.readers import read_outcomes

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "prompts-streaming.json"
NUM_MODELS = 10
CHUNK = 20_000  # prompts written at a time
ROUTERS = "knn,ridge,auto"


def write_table(path: Path, num_prompts: int) -> None:
    """Resample the real table to ``num_prompts`` x NUM_MODELS rows of the long form."""
    import pyarrow as pa
    from pyarrow import parquet

    table = read_outcomes(str(data_folder("mmlu_pro_outcomes")))
    table = table.take(np.flatnonzero(table.complete))
    table = table.select_models(table.models[-NUM_MODELS:])
    assert table.texts is not None and table.cost is not None and table.domain is not None
    rng = np.random.default_rng(0)
    schema = pa.schema(
        {
            "prompt_id": pa.string(),
            "prompt": pa.string(),
            "model": pa.string(),
            "score": pa.float64(),
            "cost": pa.float64(),
            "domain": pa.string(),
        }
    )
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, num_prompts, CHUNK):
            rows = rng.integers(len(table), size=min(CHUNK, num_prompts - start))
            names = [f"p{start + i}" for i in range(len(rows))]
            texts = [f"{table.texts[r]} [{n}]" for r, n in zip(rows, names, strict=True)]
            columns = {
                "prompt_id": np.repeat(names, NUM_MODELS),
                "prompt": np.repeat(np.array(texts, dtype=object), NUM_MODELS),
                "model": np.tile(np.array(table.models, dtype=object), len(rows)),
                "score": table.score[rows].astype(np.float64).ravel(),
                "cost": table.cost[rows].ravel(),
                "domain": np.repeat(table.domain[rows], NUM_MODELS),
            }
            writer.write_table(pa.table(columns, schema=schema))


def measure(command: list[str]) -> tuple[float, float, str]:
    """Run a command; return its seconds, the peak memory of its processes in GiB, its output."""
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)
        printed.seek(0)
        output = printed.read()
    if process.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - started, peak / 2**30, output


def resident(root: int) -> int:
    """Return the bytes of a process and its descendants; shared pages count once for each."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        parents[int(folder.name)] = int(status[1])
        sizes[int(folder.name)] = 4096 * int(status[21])
    family, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        grown = bool(more)
        family |= more
    return sum(sizes.get(pid, 0) for pid in family)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the table is kept; a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"simulated-{arguments.prompts}.parquet"
        if not path.exists():
            started = time.perf_counter()
            write_table(path, arguments.prompts)
            print(f"{path.name}: {path.stat().st_size / 2**20:.0f} MiB, "
                  f"{time.perf_counter() - started:.0f} s")  # fmt: skip
        options = ["--outcomes", str(path), "--stream", "--routers", ROUTERS, "--seeds", "1"]
        options += ["--jobs", "1", "--out", str(folder / "out"), "--json"]
        command = [sys.executable, "-m", "crossroads", "arena", "prompts", *options]
        seconds, gib, output = measure(command)
        board = json.loads(output)
        result = {
            "data": f"simulated: MMLU-Pro outcomes resampled to {arguments.prompts:,} prompts x "
            f"{NUM_MODELS} models",
            "command": f"crossroads arena prompts --stream --routers {ROUTERS} --seeds 1 --jobs 1",
            "parquet_mib": round(path.stat().st_size / 2**20),
            "seconds": round(seconds, 1),
            "peak_gib": round(gib, 2),
            "rows": {
                row["router"]: {
                    "fit_seconds": row["fit_seconds"],
                    "decide_seconds": row["decide_seconds"],
                    "error": row["error"],
                }
                for row in board["rows"]
            },
            "machine": machine(),
        }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps({k: result[k] for k in ("data", "seconds", "peak_gib")}))


if __name__ == "__main__":
    main()
