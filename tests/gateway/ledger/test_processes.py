from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from crossroads.gateway.ledger import LedgerReader
from tests.gateway.ledger.writer_program import FLUSH_MS

ROOT = Path(__file__).parents[3]
FEW = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def start(url: str, name: str, count: int, at_end: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "tests.gateway.ledger.writer_program"]
    return subprocess.Popen(
        [*program, url, name, str(count), at_end],
        cwd=ROOT,
        env=FEW,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_writer_loses_at_most_the_flush_interval(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/l.db"
    process = start(url, "a", 100_000, "wait")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(150)]
    process.kill()
    killed_at = time.time()
    lines += process.stdout.read().splitlines()
    process.wait()
    process.stdout.close()
    pairs = [line.split() for line in lines if len(line.split()) == 2]
    # a commit takes its time beside others on the machine: three intervals are granted
    due = {f"dec_a_{n}" for n, at in pairs if killed_at - float(at) > 3 * FLUSH_MS / 1000}
    with LedgerReader(url) as reader:
        found = {each.decision_id for each in reader.records()}
    assert len(due) > 20
    assert due <= found


def test_four_processes_share_one_file(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/l.db"
    processes = [start(url, f"p{n}", 2_000, "close") for n in range(4)]
    for process in processes:
        assert process.wait(timeout=30) == 0
        assert process.stdout is not None
        process.stdout.close()
    with LedgerReader(url) as reader:
        found = [each.decision_id for each in reader.records()]
    assert len(found) == 8_000
    assert len(set(found)) == 8_000
