"""A ledger as the gateway writes it, for the tests of the commands that read one.

The traffic is made up: one policy explores between two models, and ``large`` answers better.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crossroads.cli import main
from crossroads.gateway.contracts import Record
from crossroads.gateway.ledger import Feedback, LedgerSettings, open_ledger

Run = Callable[..., tuple[int, str, str]]
CALLS = 300
PROBABILITIES = {"small": 0.7, "large": 0.3}
QUALITY = {"small": 0.5, "large": 0.9}
COSTS = {"small": 0.001, "large": 0.01}


def write_ledger(path: Path, *, num_prompts: int = 100) -> str:
    """Write 300 judged calls and return the ledger's URL."""
    url = f"sqlite:{path}"
    ledger = open_ledger(LedgerSettings(url=url, keep=("text",)))
    chance = random.Random(0)
    for n in range(CALLS):
        model = "large" if chance.random() < PROBABILITIES["large"] else "small"
        record = Record(
            decision_id=f"dec_{n}",
            request_id=f"req_{n}",
            time=time.time() - CALLS + n,
            asked="auto",
            policy="auto",
            version="v1",
            rule="argmax",
            chosen=model,
            model=model,
            status=200,
            is_complete=True,
            propensity=PROBABILITIES[model],
            probabilities=PROBABILITIES,
            scores=QUALITY,
            costs=COSTS,
            predicted_cost_usd=COSTS[model],
            cost_usd=COSTS[model],
            total_ms=100.0,
            prompt=f"question {n % num_prompts}",
        )
        ledger.append(record)
        score = float(chance.random() < QUALITY[model])
        ledger.append_feedback(Feedback(decision_id=record.decision_id, score=score))
    ledger.close()
    return url


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command line here and return its exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err
