"""What recording a run's decisions costs: the same passes with and without a recorder.

The decoder of the language arena: 4 routed layers, 64 wide, 8 experts of 88 hidden units, two a
token. A block is 64 passes on new tokens, the number after which a recorder packs what it holds,
and ends with the finished trace: packing is paid for here. ``forward`` and ``train`` (forward and
backward) take 16 sequences of 64 tokens a pass, ``decode`` one token of 16 sequences, from a cache.
Every round runs a block of each method in random order; CPU time of one thread. ``share`` is the
time spent in the recorder over the rest of its block, ``longer`` the block over that without, which
also has what is slower because results are held. Takes minutes. Writes
``benchmarks/results/moe-recording.json``.

    python benchmarks/moe/recording.py [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # read when torch is imported

import torch
from torch import Tensor, nn

from crossroads.core.files import write_atomically
from crossroads.core.progress import progress_bar
from crossroads.core.provenance import machine
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.models.decoder import DecoderConfig, DecoderLM
from crossroads.moe import MoEFactory, MoESpec
from crossroads.moe.recording import PENDING_PASSES, Recorder

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "moe-recording.json"
BATCH, LENGTH, WIDTH, HIDDEN, EXPERTS, LAYERS = 16, 64, 64, 88, 8, 4
PLAIN = "without"
METHODS: dict[str, Callable[[], Recorder] | None] = {
    PLAIN: None,
    "recorder": Recorder,
    "recorder with logits": lambda: Recorder(keep_logits=True),
}


def build() -> DecoderLM:
    torch.manual_seed(0)
    spec = MoESpec(router="top2", n_experts=EXPERTS, hidden=HIDDEN)
    config = DecoderConfig(width=WIDTH, num_layers=LAYERS, max_length=LENGTH)
    return DecoderLM(config, sublayer=MoEFactory(spec, LAYERS))


def forward(model: DecoderLM, tokens: Tensor, recording: Recording) -> None:
    model.eval()
    with torch.no_grad():
        for x_BT in tokens:
            recording.keep(model(x_BT, context=RouteContext()), x_BT)


def train(model: DecoderLM, tokens: Tensor, recording: Recording) -> None:
    model.train()
    for x_BT in tokens:
        model.zero_grad()
        output: ModelOutput = model(x_BT, context=RouteContext(training=True))
        recording.keep(output, x_BT)
        loss = nn.functional.cross_entropy(output.out.flatten(0, 1), x_BT.flatten())
        (loss + output.aux_loss()).backward()


def decode(model: DecoderLM, tokens: Tensor, recording: Recording) -> None:
    model.eval()
    cache, sequences = model.init_cache(BATCH), None
    with torch.no_grad():
        for x_BT in tokens[0].split(1, dim=1)[:PENDING_PASSES]:
            output: ModelOutput = model(x_BT, context=RouteContext(), cache=cache)
            cache = output.cache
            sequences = recording.keep(output, x_BT, sequences)


@dataclass
class Recording:
    """A recorder, or none, and the nanoseconds spent in it."""

    recorder: Recorder | None
    spent: int = 0

    def keep(
        self, output: ModelOutput, x_BT: Tensor, sequences: list[int] | None = None
    ) -> list[int] | None:
        if self.recorder is None:
            return None
        began = time.process_time_ns()
        numbers = self.recorder.record(output, token_id_BT=x_BT, sequences=sequences)
        self.spent += time.process_time_ns() - began
        return numbers

    def finish(self) -> None:
        if self.recorder is not None:
            began = time.process_time_ns()
            self.recorder.trace()
            self.spent += time.process_time_ns() - began


PARTS = {"forward": forward, "train": train, "decode": decode}


def measured(part: str, rounds: int) -> dict[str, Any]:
    """Return milliseconds a pass by method, and how much longer than without, round by round."""
    model, run = build(), PARTS[part]
    order, rng = random.Random(0), torch.Generator().manual_seed(1)
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    shares: dict[str, list[float]] = {name: [] for name in METHODS}
    with progress_bar(part) as report:
        for done in range(rounds + 1):  # the first one warms up
            for name in order.sample(list(METHODS), len(METHODS)):
                tokens = torch.randint(256, (PENDING_PASSES, BATCH, LENGTH), generator=rng)
                made = METHODS[name]
                recording = Recording(made().describe(model) if made is not None else None)
                began = time.process_time_ns()
                run(model, tokens, recording)
                recording.finish()
                spent = time.process_time_ns() - began
                if done:
                    times[name].append(spent / 1e6 / PENDING_PASSES)
                    shares[name].append(recording.spent / (spent - recording.spent))
            report(done, rounds)
    return {name: _figures(times[name], times[PLAIN], shares[name]) for name in METHODS}


def _figures(spent: list[float], plain: list[float], share: list[float]) -> dict[str, float]:
    longer = [a / b - 1 for a, b in zip(spent, plain, strict=True)]
    return {
        "median_ms": round(statistics.median(spent), 3),
        "share": round(statistics.median(share), 4),
        "share_most": round(max(share), 4),
        "longer": round(statistics.median(longer), 4),
        "longer_least": round(min(longer), 4),
        "longer_most": round(max(longer), 4),
        "longer_best": round(min(spent) / min(plain) - 1, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    body = {
        "what": "Passes of a routed decoder with and without a recorder, CPU time of one thread.",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(("crossroads", "torch")),
        "passes": PENDING_PASSES,
        "load": round(os.getloadavg()[0], 2),
        **{part: measured(part, options.rounds) for part in PARTS},
    }
    write_atomically(options.out, json.dumps(body, indent=1) + "\n")
    for part in PARTS:
        for name, row in body[part].items():
            print(f"{part:8} {name:22} {row['median_ms']:9.3f} ms  {row['share']:.2%}")


if __name__ == "__main__":
    main()
