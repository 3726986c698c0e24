"""Collections that are killed: nothing finished is lost, and nothing finished is paid twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from crossroads.prompts.readers import read_outcomes
from tests.prompts.collect.replies import Replies

NUM_PROMPTS = 15
NUM_CALLS = 4 * NUM_PROMPTS  # answers of two models, and a grade of each


def reply(body: dict[str, Any]) -> str:
    if "You grade" in body["messages"][0]["content"]:
        return "score: 1"
    return f"{body['model']} says {body['messages'][-1]['content']}"


def kill_when(command: list[str], partial: Path, lines: int) -> int:
    """Run until so many cells are on the disk, kill, and return how many are."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not partial.exists() or partial.read_bytes().count(b"\n") < lines:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return partial.read_bytes().count(b"\n")


def settled(upstream: Replies) -> int:
    """Return how many requests came, those included that a killed process had just sent."""
    count = -1
    while count != len(upstream.requests):
        count = len(upstream.requests)
        time.sleep(0.5)
    return count


@pytest.mark.slow
def test_a_collection_killed_while_asking_and_while_grading_continues(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.csv"
    partial = tmp_path / "out.csv.partial.jsonl"
    rows = [
        {"prompt_id": f"p{n}", "prompt": f"q {n}", "reference": "r", "scorer": "judge:judge"}
        for n in range(NUM_PROMPTS)
    ]
    prompts.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with Replies(reply, delay=0.05) as upstream:
        pool = tmp_path / "pool.yaml"
        cards = [{"name": name, "endpoint": upstream.url} for name in ("small", "judge")]
        pool.write_text(json.dumps({"models": cards}), "utf-8")
        command = [sys.executable, "-m", "crossroads", "collect", "--pool", str(pool)]
        command += ["--prompts", str(prompts), "--out", str(out), "--concurrency", "3"]

        finished = kill_when(command, partial, 7)
        assert 7 <= finished < 2 * NUM_PROMPTS  # some answers are missing
        with partial.open("ab") as file:
            file.write(b'{"cell": "torn')  # as a kill in the middle of a write leaves it

        graded = kill_when(command, partial, 2 * NUM_PROMPTS + 5)
        assert graded < NUM_CALLS  # some grades are missing
        asked = settled(upstream)

        ended = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True)
        assert len(upstream.requests) - asked == NUM_CALLS - graded
    report = json.loads(ended.stdout)
    assert (report["num_reused"], report["judges"]["judge"]["num_grades"]) == (
        2 * NUM_PROMPTS,
        2 * NUM_PROMPTS,
    )
    table = read_outcomes(out)
    assert table.score.tolist() == [[1.0, 1.0]] * NUM_PROMPTS
    assert not partial.exists()
