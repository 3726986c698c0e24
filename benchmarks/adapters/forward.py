"""What routing among adapters costs a whole model: SmolLM2-135M beside itself without adapters.

12 random experts of the form of the shipped ones (r = 2 on q, v, o, up and down of every block,
with gates). Methods: two experts for every token and layer, one expert hard by name, a uniform
merge (static), and the first with telemetry or a trace. Forward of 4 x 128 tokens with all logits,
and one decoding step after 128 tokens. CPU time of the process on one thread, all methods
interleaved in random order on new tokens. Takes four minutes on a machine of its own. Writes
``benchmarks/results/adapters-forward.json``.

    python benchmarks/adapters/forward.py [--seconds 60] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

for _library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_library, "1")

import torch
from timing import Run, interleaved, load
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.recording import Recorder
from crossroads.adapters.routers import build_router
from crossroads.adapters.telemetry import Telemetry
from crossroads.core.files import write_atomically
from crossroads.core.provenance import machine
from crossroads.models.smollm2_torch import load_smollm2

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "adapters-forward.json"
LIBRARIES = ("crossroads", "torch", "transformers")
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
BASE = "base model"
EXPERTS, RANK = 12, 2
ARMS = {
    "top-2 per token": "phatgoose",
    "one expert by name": "named",
    "static: uniform merge": "uniform",
}


def expert(name: str, model: Any, seed: int) -> Expert:
    draw = torch.Generator().manual_seed(seed)
    layers = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in TARGETS}
    return Expert(
        name=name,
        modules={
            n: LoRA(
                a_RI=0.04 * torch.randn(RANK, m.in_features, generator=draw),
                b_OR=0.04 * torch.randn(m.out_features, RANK, generator=draw),
                scale=2.0,
            )
            for n, m in layers.items()
        },
        artifacts={
            "gate": {n: torch.randn(m.in_features, generator=draw) for n, m in layers.items()}
        },
    )


def arms_of(base: Any) -> dict[str, RoutedModel]:
    """Return routed models by arm; they share the weights of the base model and one bank."""
    names = [f"e{place}" for place in range(EXPERTS)]
    bank = AdapterBank([expert(name, base, place) for place, name in enumerate(names)])
    shared = {id(weight): weight for weight in (*base.parameters(), *base.buffers())}
    return {
        arm: RoutedModel(copy.deepcopy(base, dict(shared)), bank, build_router(spec))
        for arm, spec in ARMS.items()
    }


def forward(base: Any, arms: dict[str, RoutedModel], seconds: float) -> dict[str, Any]:
    top_2 = arms["top-2 per token"]
    watchers = {"telemetry": Telemetry(top_2), "trace": Recorder(top_2)}

    def draw(seed: int) -> Tensor:
        return torch.randint(100, 40_000, (4, 128), generator=_rng(seed))

    def watched(watcher: Telemetry | Recorder) -> Run:
        def run(ids: Tensor) -> Any:
            with watcher.on():
                return top_2.model(ids, use_cache=False)

        return run

    methods: dict[str, Run] = {BASE: lambda ids: base(ids, use_cache=False)}
    methods |= {arm: partial(routed.model, use_cache=False) for arm, routed in arms.items()}
    methods |= {f"top-2 per token, with {name}": watched(w) for name, w in watchers.items()}
    return _over_base(interleaved(methods, draw, seconds=seconds, limit=BASE, least=18, warm_up=1))


def decode(base: Any, arms: dict[str, RoutedModel], seconds: float) -> dict[str, Any]:
    models = {BASE: base, **{arm: routed.model for arm, routed in arms.items()}}
    prompt = torch.randint(100, 40_000, (1, 128), generator=_rng(0))

    def stepper(model: Any) -> Run:
        cache = model(prompt, use_cache=True).past_key_values

        def step(ids: Tensor) -> Any:
            found = model(ids, past_key_values=cache, use_cache=True)
            cache.crop(-1)  # as it was, for the next round
            return found

        return step

    def draw(seed: int) -> Tensor:
        return torch.randint(100, 40_000, (1, 1), generator=_rng(seed))

    methods = {name: stepper(model) for name, model in models.items()}
    return _over_base(interleaved(methods, draw, seconds=seconds, limit=BASE))


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + 10)


def _over_base(figures: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        name: {**found, "times_base": round(1 / found["ratio"], 3)}
        for name, found in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each part")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    base = load_smollm2()
    arms = arms_of(base)
    body: dict[str, Any] = {
        "what": "SmolLM2-135M with 12 routed experts: CPU time on one thread, new tokens a round.",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(LIBRARIES),
        "threads": 1,
        "load": {},
    }
    with torch.no_grad(), calling(experts=["e3"]):
        for part, measure in (("forward", forward), ("decode", decode)):
            print(f"{part} ...", file=sys.stderr)
            body[part] = measure(base, arms, options.seconds)
            body["load"][part] = load()
            write_atomically(options.out, json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
