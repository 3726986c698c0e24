"""What every router costs, as a share of its layer.

Every router stands in the same layer (256 wide, 8 experts of 512 hidden units) on 8 sequences of
512 tokens that no call has seen. A token runs two experts, as in the other benchmarks of the layer,
wherever the router can be told so; the settings are in the result. CPU time of one thread. In
evaluation the share is the time of the router's own calls over the layer's. In training, forward
and backward with auxiliary losses, it is what the layer takes longer than with the same decision
given from outside. Medians over rounds in which every router runs once, in random order. Routers
that ask for what is not there are named with the reason. Writes
``benchmarks/results/moe-routers.json``.

    python benchmarks/moe/routers.py [--seconds 60] [--out FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # read when torch is imported

import torch
from torch import Tensor, nn

from crossroads.core.dispatch.native import kernels_for
from crossroads.core.errors import CrossroadsError
from crossroads.core.files import write_atomically
from crossroads.core.provenance import machine
from crossroads.core.routed import RouteContext
from crossroads.moe import MoEFactory, MoELayer, MoESpec, router_names
from crossroads.moe.contract import RoutingDecision
from crossroads.moe.routers import known_settings, router_class

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "moe-routers.json"
BATCH, LENGTH, WIDTH, HIDDEN, EXPERTS, HEADS = 8, 512, 256, 512, 8, 4
WARM_UP, LEAST_ROUNDS = 2, 5
# What makes a token run two experts, of the settings a router has. ``tokens`` sizes soft slots.
TWO_ACTIVE = {"k": 2, "cf": 2.0, "k_min": 2, "k_max": 2, "tokens": LENGTH}
# As they are. The first three run two: null experts, a code beside the gate, a shared expert;
# da-moe runs as many as the attention asks for, here nearly all.
ITS_OWN = ("adamoe", "vqmoe", "promoe", "da-moe")


@dataclass
class Bench:
    """One layer, and the times of its router's calls and its own."""

    layer: MoELayer
    shared: nn.ModuleDict  # routers that belong to the model, kept alive
    settings: dict[str, Any]
    active: float = 0.0
    router_ms: list[float] = field(default_factory=list)
    layer_ms: list[float] = field(default_factory=list)
    training_ms: list[float] = field(default_factory=list)
    given_ms: list[float] = field(default_factory=list)
    _began: int = 0
    _spent: int = 0

    def __post_init__(self) -> None:
        for router in self.layer.routers:
            router.register_forward_pre_hook(self._enter)
            router.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self._began = time.process_time_ns()

    def _leave(self, *_: Any) -> None:
        self._spent += time.process_time_ns() - self._began

    def run(self, rng: torch.Generator, *, keep: bool) -> None:
        h, attn, context = draw(rng)
        self._spent = 0
        began = time.process_time_ns()
        with torch.no_grad():
            answer = self.layer(h, context, attn=attn, attn_out=h)
        spent = time.process_time_ns() - began
        router_ms = self._spent / 1e6
        each = float(self.layer.experts.flops_E(LENGTH).max()) * BATCH * LENGTH
        self.active = (answer.flops - self.layer.routers[0].router_flops(BATCH * LENGTH)) / each
        training_ms, given_ms = self.train(rng)
        if keep:
            self.router_ms.append(router_ms)
            self.layer_ms.append(spent / 1e6)
            self.training_ms.append(training_ms)
            self.given_ms.append(given_ms)

    def train(self, rng: torch.Generator) -> tuple[float, float]:
        """Return the time of a training step's pass, and of one whose decision is given."""
        h, attn, context = draw(rng)
        context = replace(context, training=True, progress=0.5)
        grad = torch.randn(h.shape, generator=rng)
        with torch.no_grad():
            decision = self.layer(h, context, attn=attn, attn_out=h).decisions[0]
        times = []
        for given in (None, loose(decision)):
            self.layer.zero_grad()
            x = h.clone().requires_grad_()
            began = time.process_time_ns()
            answer = self.layer(x, context, attn=attn, attn_out=x, decision=given)
            aux = [term.weighted for term in answer.aux.values()]
            loss = sum(aux, (answer.delta * grad).sum())
            loss.backward()
            times.append((time.process_time_ns() - began) / 1e6)
        return times[0], times[1]


def loose(value: Any) -> Any:
    """Return a decision whose numbers are leaves that ask for gradients."""
    if isinstance(value, Tensor):
        floats = value.is_floating_point()
        return value.detach().clone().requires_grad_() if floats else value
    if isinstance(value, tuple):
        return tuple(loose(item) for item in value)
    if isinstance(value, RoutingDecision):
        return replace(value, choice=loose(value.choice), branches=loose(value.branches))
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{f.name: loose(getattr(value, f.name)) for f in fields(value)})
    return value


def draw(rng: torch.Generator) -> tuple[Tensor, Tensor, RouteContext]:
    """Return new tokens, attention probabilities, and the side information routers may ask for."""
    h = torch.randn(BATCH, LENGTH, WIDTH, generator=rng)
    attn = torch.rand(BATCH, HEADS, LENGTH, LENGTH, generator=rng)
    attn /= attn.sum(-1, keepdim=True)
    cond = {
        "token_id": torch.randint(1000, (BATCH, LENGTH), generator=rng),
        "label": torch.randint(10, (BATCH,), generator=rng),
        "null": torch.arange(BATCH) % 8 == 0,
    }
    return h, attn, RouteContext(cond=cond)


def build(seed: int = 0) -> tuple[dict[str, Bench], dict[str, str]]:
    """Return a bench for every router that runs here, and why others were left out."""
    benches: dict[str, Bench] = {}
    left_out: dict[str, str] = {}
    for router in router_names():
        torch.manual_seed(seed)
        try:
            known = () if router in ITS_OWN else known_settings(router_class(router))
            settings = {name: value for name, value in TWO_ACTIVE.items() if name in known}
            text = ":".join([router, *(f"{name}={value}" for name, value in settings.items())])
            spec = MoESpec(router=text, n_experts=EXPERTS, hidden=HIDDEN)
            factory = MoEFactory(spec, num_layers=1)
            layer = factory(0, WIDTH, None)
            assert isinstance(layer, MoELayer)
            bench = Bench(layer.eval(), factory.shared, settings)
            bench.run(torch.Generator().manual_seed(seed), keep=False)
        except CrossroadsError as error:
            left_out[router] = str(error).split(";")[0]
        else:
            benches[router] = bench
    return benches, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    benches, left_out = build()
    order, rng = random.Random(0), torch.Generator().manual_seed(1)
    rounds, began = 0, time.monotonic()
    while rounds < WARM_UP + LEAST_ROUNDS or time.monotonic() - began < options.seconds:
        for router in order.sample(list(benches), len(benches)):
            benches[router].run(rng, keep=rounds >= WARM_UP)
        rounds += 1
    body = {
        "what": "CPU time of every router as a share of its layer, in evaluation and training.",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(("crossroads", "torch")),
        "compiled_kernels": kernels_for(torch.empty(0)) is not None,
        "layer": {
            "tokens": BATCH * LENGTH, "width": WIDTH, "hidden": HIDDEN, "experts": EXPERTS,
        },
        "rounds": rounds - WARM_UP,
        "routers": {router: figures(bench) for router, bench in sorted(benches.items())},
        "left_out": left_out,
    }  # fmt: skip
    write_atomically(options.out, json.dumps(body, indent=1) + "\n")


def figures(bench: Bench) -> dict[str, Any]:
    shares = [a / b for a, b in zip(bench.router_ms, bench.layer_ms, strict=True)]
    trained = zip(bench.training_ms, bench.given_ms, strict=True)
    return {
        "settings": bench.settings,
        "experts_per_token": round(bench.active, 2),
        "router_ms": round(statistics.median(bench.router_ms), 3),
        "layer_ms": round(statistics.median(bench.layer_ms), 3),
        "share": round(statistics.median(shares), 4),
        "training_ms": round(statistics.median(bench.training_ms), 3),
        "training_share": round(statistics.median([1 - b / a for a, b in trained]), 4),
    }


if __name__ == "__main__":
    main()
