"""HyperRouter: a gate that a frozen random network writes beats a trained and a frozen random gate.

The paper reports better perplexity than a trained gate (SMoE) and a frozen random one (SMoE-
Dropout), most of all with few experts at inference. Here byte language models of 16 experts of one
size are trained on real text for equal steps: HyperRouter and SMoE-Dropout with 8 to 16 experts a
token (several times the compute of the third), and top-2 with a trained gate. Every model is then
judged with 1, 2, 4, 8 and 16 experts a token.

Rules, set before measuring. Differences are of bits per byte on held-out text, seed by seed, with
their 95 % interval. (a) HyperRouter less SMoE-Dropout, with 2 and with 4 experts. (b) HyperRouter
less top-2, with 2 experts. (c) Mechanism: the mean cosine of two experts' outputs for the same
token is lower than in the top-2 model, in every seed: experts that many tokens train together stay
different. (d) Exact: after training the hypernetwork is what it was bit by bit, its embedding is
the only trained tensor of a router and has moved, and K goes from 8 to 16. ``fails``: (d) broken,
or with 2 experts an interval of (a) or (b) wholly more than 0.5 % above the other's figure;
``holds``: (a) and (b) with 2 experts wholly below zero, (a) with 4 below zero in the mean, and (c);
``holds in direction``: (a) and (b) with 2 experts below zero in the mean and one of them wholly so;
else ``null``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.routed import routed_layers
from crossroads.moe.beds import ArenaBed, get_bed
from crossroads.moe.claims.arms import Arm, Arms, run_arms
from crossroads.moe.claims.checkpoints import router_inputs
from crossroads.moe.claims.reporting import differences
from crossroads.moe.diagnostics import output_redundancy
from crossroads.moe.routers.hyper import HyperRouter
from crossroads.moe.training import TrainConfig

SEEDS = (0, 1, 2)
PAPER = {"order": "HyperRouter < SMoE-Dropout, SMoE in perplexity, most with few experts"}
N_EXPERTS, K_MIN = 16, 8
HYPER, DROPOUT, TRAINED = "HyperRouter", "SMoE-Dropout", "top-2"
_EXPERTS = {"n_experts": N_EXPERTS, "hidden": 44}  # a quarter of the dense feed-forward each
ARMS = {
    HYPER: Arm(router=f"hyper:k_min={K_MIN}:k_eval=2", changes=_EXPERTS),
    DROPOUT: Arm(
        router=f"random:k={K_MIN}:k_end={N_EXPERTS}:k_eval=2:renorm=true", changes=_EXPERTS
    ),
    TRAINED: Arm(router="top2", changes=_EXPERTS),
}
STEPS = {False: 150, True: 600}
JUDGED_K = (1, 2, 4, 8, 16)
TOLERANCE = 0.005
SIMILARITY = "expert similarity"
_PROBED = 256  # tokens a layer for the similarity of experts


def verify(full: bool) -> Verdict:
    """Train the three arms with three seeds and judge; ``full`` trains four times as long."""
    bed = get_bed("lm")
    config = replace(bed.config("quick"), steps=STEPS[full])
    keep = "hyperrouter" if full else None
    arms = run_arms(bed, ARMS, config, seeds=SEEDS, inspect=inspect, keep=keep)
    pairs = [(HYPER, other, at(k)) for k in JUDGED_K for other in (DROPOUT, TRAINED)]
    return Verdict(
        name="hyperrouter",
        verdict=judge(arms),
        paper=PAPER,
        measured={
            "steps": config.steps,
            "arms": arms.table([*map(at, JUDGED_K), SIMILARITY, "load_cv", "gate_moved"]),
            "differences": differences(arms, [*pairs, (HYPER, TRAINED, SIMILARITY)]),
            "exact_properties": min(arms.of(HYPER, "exact")) == 1,
        },
        seeds=SEEDS,
        data=f"{bed.description}, {N_EXPERTS} experts",
    )


def at(k: int) -> str:
    """Return the name of bits per byte with so many experts a token."""
    return f"bpb at K={k}"


def judge(arms: Arms) -> Outcome:
    """Return the verdict on the figures of all seeds; the module's text has the rules."""
    if min(arms.of(HYPER, "exact")) < 1 or worse(arms, DROPOUT) or worse(arms, TRAINED):
        return "fails"
    pair = [arms.difference(HYPER, other, at(2)) for other in (DROPOUT, TRAINED)]
    clear = [s.high is not None and s.high < 0 for s in pair]
    cosines = zip(arms.of(HYPER, SIMILARITY), arms.of(TRAINED, SIMILARITY), strict=True)
    if (
        all(clear)
        and arms.mean(HYPER, at(4)) < arms.mean(DROPOUT, at(4))
        and all(mine < trained for mine, trained in cosines)
    ):
        return "holds"
    below = all(s.mean is not None and s.mean < 0 for s in pair)
    return "holds in direction" if below and any(clear) else "null"


def worse(arms: Arms, other: str) -> bool:
    """Return whether HyperRouter is clearly worse than another arm with two experts."""
    low = arms.difference(HYPER, other, at(2)).low
    return low is not None and low > TOLERANCE * arms.mean(other, at(2))


def inspect(model: nn.Module, bed: ArenaBed, config: TrainConfig) -> dict[str, float]:
    """Return bits per byte by experts a token, similarity of experts, and what training moved."""
    layers: Sequence[Any] = routed_layers(model)
    found = by_k(model, bed, config)
    inputs = router_inputs(model, bed)
    alike = [
        output_redundancy(layer.experts, inp.x_ND[:_PROBED])
        for layer, inp in zip(layers, inputs, strict=True)
    ]
    found[SIMILARITY] = sum(alike) / len(alike)
    routers = [layer.routers[0] for layer in layers]
    if all(isinstance(router, HyperRouter) for router in routers):
        found |= moved(routers, untrained(bed, config))
    return found


def by_k(model: nn.Module, bed: ArenaBed, config: TrainConfig) -> dict[str, float]:
    """Return bits per byte with every number of experts a token; the model is left as it was."""
    routers = [layer.routers[0] for layer in routed_layers(model)]
    name = "k_eval" if hasattr(routers[0], "k_eval") else "k"
    usual = [getattr(router, name) for router in routers]
    found = {}
    for k in JUDGED_K:
        for router in routers:
            setattr(router, name, min(k, router.n_experts))
        found[at(k)] = bed.evaluate(model, config)["bpb"]
    for router, k in zip(routers, usual, strict=True):
        setattr(router, name, k)
    return found


def untrained(bed: ArenaBed, config: TrainConfig) -> list[HyperRouter]:
    """Return the routers that a run of HyperRouter starts with."""
    torch.manual_seed(config.seed)
    model = bed.build(ARMS[HYPER].spec(bed))
    return [layer.routers[0] for layer in routed_layers(model)]


def moved(after: Sequence[HyperRouter], before: Sequence[HyperRouter]) -> dict[str, float]:
    """Return how far the gates moved, relative to their size, and whether only they could."""
    shares, exact = [], True
    for new, old in zip(after, before, strict=True):
        same = all(torch.equal(a, b) for a, b in zip(new.buffers(), old.buffers(), strict=True))
        trained = [p for p in new.parameters() if p.requires_grad]
        only = len(trained) == 1 and trained[0] is new.embedding
        changed = not torch.equal(new.embedding, old.embedding)
        exact &= same and only and changed and (new.k_min, new.k_max) == (K_MIN, new.n_experts)
        gate, first = new.generated()[0].detach(), old.generated()[0].detach()
        shares.append(float((gate - first).norm() / first.norm()))
    return {"gate_moved": sum(shares) / len(shares), "exact": float(exact)}
