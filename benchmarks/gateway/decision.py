"""CPU of one learned decision in the gateway, part by part and by the size of the micro-batch.

Two fitted ``auto`` routers decide prompts of 100 words, all different: one of eleven models fitted
without texts (MMLU-Pro, replayed), which looks at embeddings only, and one of three models fitted
with texts (``local``), which reads words and style too. ``choose`` is all of it, as the
gateway calls it; the parts are timed one by one and do not add up to it exactly. Figures are
microseconds of CPU per prompt, medians over rounds. Writes
``benchmarks/results/gateway-decision.json``.

    python benchmarks/gateway/decision.py [--rounds 7] [--prompts 480] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
    return [
        Call(dialect="chat", model="auto", body={"messages": [{"role": "user", "content": text}]})
        for text in texts
    ]


def cpu_us(part: Callable[[], object], count: int) -> float:
    """Return the CPU microseconds per prompt of one run over ``count`` prompts."""
    began = time.process_time_ns()
    part()
    return (time.process_time_ns() - began) / count / 1000


def parts(fitted: FittedRouter) -> dict[str, Part]:
    """Return what a batch of texts goes through, inside out."""
    encoder = get_encoder(fitted.encoder)
    estimates = Estimates(fitted)
    predict = fitted.router.predict
    known: dict[str, np.ndarray] = {}

    def asked(texts: list[str]) -> Queries:
        rows = np.stack([known[text] for text in texts])
        return Queries(embeddings=rows, texts=np.array(texts, dtype=object))

    def remember(texts: list[str]) -> None:
        known.update((text, encoder.encode([text])[0]) for text in texts)

    return {
        "prepare": remember,
        "encode": lambda texts: [encoder.encode([text]) for text in texts],
        "predict": lambda texts: predict(asked(texts)),
        "estimate": estimates.estimate,
    }


async def choose(policies: CompiledPolicies, batches: list[list[Call]]) -> None:
    for batch in batches:
        if len(batch) == 1:
            await policies.choose(batch[0])
        else:
            await asyncio.gather(*map(policies.choose, batch))


def measure(fitted: FittedRouter, rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Return microseconds by part and size of the batch."""
    settings = PoliciesSettings.model_validate(
        {"policies": {"auto": {"kind": "learned", "router": "fitted", "max_batch": max(SIZES)}}}
    )
    policies = compile_policies(settings, fitted.pool, routers={"fitted": fitted})
    source = prompts()
    work = parts(fitted)
    prepare = work.pop("prepare")
    found: dict[str, dict[int, list[float]]] = {
        name: {size: [] for size in SIZES} for name in (*work, "choose", "choose again")
    }
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for round_ in range(rounds + 1):
            for size in SIZES:
                texts = [next(source) for _ in range(count)]
                prepare(texts)
                batches = [texts[n : n + size] for n in range(0, count, size)]
                spent = {
                    name: cpu_us(lambda part=part: [part(batch) for batch in batches], count)
                    for name, part in work.items()
                }
                for name in ("choose", "choose again"):
                    asked = [calls(batch) for batch in batches]
                    for batch in asked:
                        for call in batch:
                            _ = call.text  # found by the gateway before it decides
                    spent[name] = cpu_us(lambda: runner.run(choose(policies, asked)), count)
                if round_:  # the first one warms up
                    for name, us in spent.items():
                        found[name][size].append(us)
    policies.close()
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
