"""Every router on the two real tables, five seeds: the reports of the docs, and how long they take.

    CROSSROADS_DATA=... python benchmarks/prompts/reports.py [mmlu-pro routellm]

Needs the data sets ``mmlu_pro_outcomes`` (12,032 prompts x 29 models) and ``routellm_mmlu_gsm8k``
(15,361 prompts x 2 models). Runs the arena's own command from an empty folder, keeps its page under
docs/prompts/reports and its JSON under benchmarks/results, then rebuilds the tables of the docs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from crossroads.datasets.paths import data_folder

ROOT = Path(__file__).parents[2]
TABLES = {"mmlu-pro": "mmlu_pro_outcomes", "routellm": "routellm_mmlu_gsm8k"}
SEEDS = 5


def main() -> None:
    for name in sys.argv[1:] or TABLES:
        with tempfile.TemporaryDirectory() as out:
            options = ["--outcomes", str(data_folder(TABLES[name])), "--seeds", str(SEEDS)]
            command = [sys.executable, "-m", "crossroads", "arena", "prompts", *options]
            started = time.perf_counter()
            done = subprocess.run(
                [*command, "--out", out, "--json"], check=True, stdout=subprocess.PIPE, text=True
            )
            board = json.loads(done.stdout)
            board["wall_seconds"] = round(time.perf_counter() - started, 1)
            target = ROOT / "benchmarks" / "results" / f"prompts-report-{name}.json"
            target.write_text(json.dumps(board, indent=1) + "\n", "utf-8")
            pages = ROOT / "docs" / "prompts" / "reports"
            pages.mkdir(exist_ok=True)
            shutil.copyfile(Path(out) / "report.html", pages / f"{name}.html")
            routers = len(board["rows"])
            print(f"{name}: {routers} routers x {SEEDS} seeds in {board['wall_seconds']} s")
    rebuild = ROOT / "scripts" / "build_measured_tables.py"
    subprocess.run([sys.executable, str(rebuild)], check=True)


if __name__ == "__main__":
    main()
