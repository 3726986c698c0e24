"""How good is every router on the pools that ship with the package? All routers, 3 seeds.

Runs the arena's own command and keeps its JSON, then rebuilds the tables of the docs from it:

    python benchmarks/prompts/arenas.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
POOLS = ("served", "small", "complete")


def main() -> None:
    for pool in POOLS:
        arguments = ["--outcomes", f"mmlu-pro:{pool}", "--seeds", "3"]
        out = ["--out", str(ROOT / "runs" / f"arena-{pool}"), "--json"]
        command = [sys.executable, "-m", "crossroads", "arena", "prompts", *arguments, *out]
        board = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        target = ROOT / "benchmarks" / "results" / f"prompts-arena-{pool}.json"
        target.write_text(board, "utf-8")
        print(target.relative_to(ROOT))
    rebuild = ROOT / "scripts" / "build_measured_tables.py"
    subprocess.run([sys.executable, str(rebuild)], check=True)


if __name__ == "__main__":
    sys.exit(main())
