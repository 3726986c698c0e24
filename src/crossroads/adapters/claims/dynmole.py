"""DynMoLE: experts by entropy against one LoRA of as many parameters, and against top-2.

The paper fine-tunes Llama-2-7B on commonsense reasoning: +9.6 % over LoRA, +2.3 % over MoLA (a
fixed number of experts a token). Here four experts of rank 4 in the feed-forward layers are trained
with their gates on four domains at once, three paired seeds; figures are nats per answer token on
other rows, means over domains. ``full`` takes SmolLM2 instead of a toy.

Rules, set before measuring. Against LoRA of at least as many parameters: ``holds`` when the 95 %
interval of the paired difference lies below 0, and in every seed the mean entropy of test tokens
falls and the share of tokens that use all experts ends below 0.3; ``holds in direction`` when the
mean difference is not above 0 and the entropy falls in every seed; ``fails`` when the interval lies
above 0 or the entropy rises in the mean; else ``null``.

Reported and deciding nothing: the same bank with the two best experts for every token and no loss
of entropy (what MoLA does), with all of them, and the shares of broadcast tokens by layer.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.claims.domain_bed import (
    SEEDS,
    DomainBed,
    SmolBed,
    ToyBed,
    domain_nll,
)
from crossroads.adapters.claims.phatgoose import interval, rounded
from crossroads.adapters.contract import Router
from crossroads.adapters.experts import Alone
from crossroads.adapters.joint import train_jointly
from crossroads.adapters.passes import Pass
from crossroads.adapters.routers.dynmole import DynMoLE
from crossroads.adapters.training import TrainSettings
from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.progress import progress_bar
from crossroads.core.statistics import Summary, paired_difference

PAPER = {"over_lora": 0.096, "over_mola": 0.023, "abstract": True}
TARGETS = ("gate_proj", "up_proj", "down_proj")
EXPERTS, RANK = 4, 4
BROADCAST = 0.3
ARMS: dict[str, dict[str, Any]] = {
    "dynmole": {},
    "top-2": {"top_p": 0.0, "broadcast": 1.0, "entropy": 0.0},
    "dense": {"top_p": 1.0, "keep": EXPERTS, "entropy": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured, a value a seed; ``before`` and ``after`` training.

    Attributes
    ----------
    nll : by arm
    entropy, broadcast : of DynMoLE on test tokens, means over layers
    by_layer : share of broadcast tokens of the last seed
    parameters : by arm
    """

    nll: dict[str, list[float]]
    entropy: dict[str, list[float]]
    broadcast: dict[str, list[float]]
    by_layer: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)

    def difference(self, other: str) -> Summary:
        """Return DynMoLE - other, seed by seed."""
        return paired_difference(self.nll["dynmole"], self.nll[other])


def verify(full: bool) -> Verdict:
    """Train the arms and judge."""
    bed: DomainBed = SmolBed() if full else ToyBed()
    found = measure(bed)
    return Verdict(
        name="dynmole",
        verdict=judge(found),
        paper=PAPER,
        measured={
            "nll": {arm: rounded(values) for arm, values in found.nll.items()},
            "dynmole - other": {
                arm: interval(found.difference(arm))
                for arm in found.nll
                if arm not in {"base", "dynmole"}
            },
            "entropy": {when: rounded(values) for when, values in found.entropy.items()},
            "broadcast": {when: rounded(values) for when, values in found.broadcast.items()},
            "broadcast_by_layer": found.by_layer,
            "parameters": found.parameters,
        },
        seeds=SEEDS,
        data=bed.description,
    )


def judge(found: Figures) -> Outcome:
    """Return the verdict; the module's text has the rules."""
    against = found.difference("lora")
    falls = [a < b for b, a in zip(found.entropy["before"], found.entropy["after"], strict=True)]
    rises = statistics.mean(found.entropy["after"]) > statistics.mean(found.entropy["before"])
    assert against.mean is not None
    assert against.low is not None and against.high is not None
    if against.low > 0 or rises:
        return "fails"
    settled = max(found.broadcast["after"]) < BROADCAST
    if against.high < 0 and all(falls) and settled:
        return "holds"
    return "holds in direction" if against.mean <= 0 and all(falls) else "null"


def measure(bed: DomainBed, seeds: tuple[int, ...] = SEEDS) -> Figures:
    """Return the figures of all arms."""
    found = Figures(
        nll={arm: [] for arm in ("base", "lora", *ARMS)},
        entropy={"before": [], "after": []},
        broadcast={"before": [], "after": []},
    )
    with progress_bar("arms of dynmole") as progress:
        for place, seed in enumerate(seeds):
            found.nll["base"].append(statistics.mean(domain_nll(bed, seed, None, None)))
            for arm, settings in ARMS.items():
                _measure_mixture(bed, seed, arm, settings, found)
            _measure_lora(bed, seed, found)
            progress(place + 1, len(seeds))
    return found


def _measure_mixture(
    bed: DomainBed, seed: int, arm: str, settings: dict[str, Any], found: Figures
) -> None:
    bank = AdapterBank(
        [bed.expert(seed, f"e{e}", targets=TARGETS, rank=RANK, draw=e) for e in range(EXPERTS)]
    )
    router = DynMoLE(seed=seed, **settings)
    router.prepare(bank)
    if arm == "dynmole":
        _keep(found, "before", layers_of(bed, seed, bank, router))
    _train(bed, seed, bank, router)
    found.nll[arm].append(statistics.mean(domain_nll(bed, seed, bank, router)))
    found.parameters[arm] = _size(bank, router)
    if arm == "dynmole":
        layers = layers_of(bed, seed, bank, router)
        _keep(found, "after", layers)
        found.by_layer.update({name: round(f["broadcast"], 3) for name, f in layers.items()})


def _measure_lora(bed: DomainBed, seed: int, found: Figures) -> None:
    """Train one LoRA of the lowest rank that has at least DynMoLE's parameters."""
    rank = EXPERTS * RANK
    while True:
        expert = bed.expert(seed, "lora", targets=TARGETS, rank=rank)
        if expert.n_parameters >= found.parameters["dynmole"]:
            break
        rank += 1
    bank, router = AdapterBank([expert]), Alone()
    _train(bed, seed, bank, router)
    found.nll["lora"].append(statistics.mean(domain_nll(bed, seed, bank, router)))
    found.parameters["lora"] = expert.n_parameters


def _train(bed: DomainBed, seed: int, bank: AdapterBank, router: Router) -> None:
    train_jointly(
        bed.model(seed),
        bank,
        router,
        bed.training(seed),
        TrainSettings(steps=bed.steps[1], seed=seed),
        lr=bed.lr,
    )


def layers_of(
    bed: DomainBed, seed: int, bank: AdapterBank, router: DynMoLE
) -> dict[str, dict[str, float]]:
    """Return entropy, balance and share of broadcast test tokens, by layer."""
    seen: dict[str, list[dict[str, float]]] = {}

    def watch(ended: Pass) -> None:
        for layer, figures in router.by_layer(ended.decided, ended.call).items():
            seen.setdefault(layer, []).append(figures)

    domain_nll(bed, seed, bank, router, watch=watch)
    return {
        layer: {name: statistics.mean(f[name] for f in figures) for name in figures[0]}
        for layer, figures in seen.items()
    }


def _keep(found: Figures, when: str, layers: dict[str, dict[str, float]]) -> None:
    found.entropy[when].append(statistics.mean(f["entropy"] for f in layers.values()))
    found.broadcast[when].append(statistics.mean(f["broadcast"] for f in layers.values()))


def _size(bank: AdapterBank, router: Router) -> int:
    return sum(e.n_parameters for e in bank.experts()) + sum(p.numel() for p in router.parameters())
