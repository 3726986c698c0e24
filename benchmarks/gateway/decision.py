"""CPU of one learned decision in the gateway, part by part and by the size of the micro-batch.

Two fitted ``auto`` routers decide prompts of 100 words, all different: one of eleven models fitted
without texts (MMLU-Pro, replayed), which looks at embeddings only, and one of three models fitted
with texts (``local``), which reads words and style too. ``choose`` is all of it, as the gateway
calls it, for prompts never seen and once more for the same; the parts are timed one by one, on
other prompts, and do not add up to it exactly. The prompts are pieces of this project's documents,
whose words split into more pieces than plain prose. Figures are microseconds of CPU per prompt of
this process alone, medians over rounds. Writes ``benchmarks/results/gateway-decision.json``.

    python benchmarks/gateway/decision.py [--rounds 7] [--prompts 480] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # as in a worker; read when numpy is imported

import numpy as np
import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from crossroads.core.provenance import machine
from crossroads.gateway.call import Call
from crossroads.gateway.policies import CompiledPolicies, PoliciesSettings, compile_policies
from crossroads.gateway.policies.estimates import Estimates
from crossroads.models.encoders import get_encoder
from crossroads.prompts import fit_router, read_outcomes
from crossroads.prompts.fitted import FittedRouter
from crossroads.prompts.pool import read_pool
from crossroads.prompts.router import Queries

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "gateway-decision.json"
SIZES = (1, 4, 16, 32)
WORDS = 100
Part = Callable[[list[str]], object]


def prompts(seed: int = 0) -> Iterator[str]:
    """Yield prompts without end, put together from pieces of this project's own documents."""
    text = " ".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    words, draw = text.split(), random.Random(seed)
    half = WORDS // 2
    while True:
        one, other = (draw.randrange(len(words) - half) for _ in range(2))
        yield " ".join(words[one : one + half] + words[other : other + half])


def calls(texts: list[str]) -> list[Call]:
    found = [
        Call(dialect="chat", model="auto", body={"messages": [{"role": "user", "content": text}]})
        for text in texts
    ]
    for call in found:
        _ = call.text  # the gateway finds it before it decides
    return found


def cpu_us(part: Callable[[], object], count: int) -> float:
    """Return the CPU microseconds per prompt of one run over ``count`` prompts."""
    began = time.process_time_ns()
    part()
    return (time.process_time_ns() - began) / count / 1000


def parts(fitted: FittedRouter) -> dict[str, Part]:
    """Return what a batch of texts goes through: encode and predict are parts of estimate."""
    estimates = Estimates(fitted)
    encoder = get_encoder(fitted.encoder)
    zeros = np.zeros((max(SIZES), encoder.dim), dtype=np.float32)

    def predict(texts: list[str]) -> object:
        column = np.array(texts, dtype=object)
        return fitted.router.predict(Queries(embeddings=zeros[: len(texts)], texts=column))

    def encode(texts: list[str]) -> object:
        return [encoder.encode([text]) for text in texts]

    return {"encode": encode, "predict": predict, "estimate": estimates.estimate}


def run_part(part: Part, batches: list[list[str]]) -> None:
    for batch in batches:
        part(batch)


async def choose(policies: CompiledPolicies, batches: list[list[Call]]) -> None:
    for batch in batches:
        if len(batch) == 1:
            await policies.choose(batch[0])
        else:
            await asyncio.gather(*map(policies.choose, batch))


class Bench:
    """One fitted router, its policy, and prompts that never come twice."""

    def __init__(self, fitted: FittedRouter, count: int) -> None:
        self.parts = parts(fitted)
        self.count = count
        self._source = prompts()
        learned = {"kind": "learned", "router": "fitted", "max_batch": max(SIZES)}
        settings = PoliciesSettings.model_validate({"policies": {"auto": learned}})
        self.policies = compile_policies(settings, fitted.pool, routers={"fitted": fitted})

    def batches(self, size: int) -> list[list[str]]:
        texts = [next(self._source) for _ in range(self.count)]
        return [texts[n : n + size] for n in range(0, self.count, size)]

    def round(self, runner: asyncio.Runner, size: int) -> dict[str, float]:
        """Return the microseconds of each part, and of the whole at first sight and again."""
        spent = {
            name: cpu_us(partial(run_part, part, self.batches(size)), self.count)
            for name, part in self.parts.items()
        }
        texts = self.batches(size)
        for name in ("choose", "choose again"):
            asked = [calls(batch) for batch in texts]
            work = partial(choose, self.policies, asked)
            spent[name] = cpu_us(partial(run_async, runner, work), self.count)
        return spent


def run_async(runner: asyncio.Runner, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    runner.run(work())


def measure(fitted: FittedRouter, rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Return median microseconds by part and size of the batch."""
    bench = Bench(fitted, count)
    found: dict[str, dict[int, list[float]]] = {}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number in range(rounds + 1):
            for size in SIZES:
                for name, us in bench.round(runner, size).items():
                    if number:  # the first one warms up
                        found.setdefault(name, {}).setdefault(size, []).append(us)
    bench.policies.close()
    return {
        name: {str(size): round(statistics.median(us), 1) for size, us in by_size.items()}
        for name, by_size in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=480)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    body = {
        "question": "CPU microseconds of one learned decision, prompts of 100 words",
        "machine": machine(),
        "settings": {"rounds": options.rounds, "prompts_a_round": options.prompts},
        "cpu_us": {},
    }
    for table in ("mmlu-pro:served", "local"):
        fitted = fit_router("auto", read_outcomes(table), pool=read_pool(table))
        body["cpu_us"][table] = by_part = measure(fitted, options.rounds, options.prompts)
        print(f"{table:16s}" + "".join(f"{f'N={size}':>9s}" for size in SIZES))
        for name, by_size in by_part.items():
            print(f"  {name:14s}" + "".join(f"{us:9.1f}" for us in by_size.values()))
    options.out.write_text(json.dumps(body, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
