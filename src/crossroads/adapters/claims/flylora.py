"""FlyLoRA: adapters whose frozen random projections let them be merged with less loss than LoRA.

The paper reports gains over LoRA on Llama-3.1-8B and Qwen-2.5, and merged adapters that lose less.
Here an adapter is trained on each of three domains: FlyLoRA (32 ranks, 8 fire; every domain its own
seed of A) and LoRA of rank 8, the same number of active ranks, on all seven kinds of layers. They
are merged as the average of their deltas. Three paired seeds; figures are nats per answer token on
other rows, means over domains. ``full`` takes SmolLM2 instead of a toy.

Rules, set before measuring. What merging costs is the loss of the merged adapter less that of each
domain's own. ``holds`` when the 95 % interval of the paired difference FlyLoRA - LoRA of that cost
lies below 0 and FlyLoRA's own adapters are at most 0.02 nats above LoRA's in the mean; ``holds in
direction`` when the mean difference of costs is below 0; ``fails`` when its interval lies above 0;
else ``null``.

Reported and deciding nothing: the selection by |z| + d; the average of all adapters where each
keeps firing its own 8 ranks (union); the published script's average of A and B apart, for adapters
of one seed of A; how uneven ranks fire; the largest cosine between two domains' A.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch

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
from crossroads.adapters.fly import delta_average, factor_average, fly_bank, union
from crossroads.adapters.joint import train_jointly
from crossroads.adapters.passes import Pass
from crossroads.adapters.routers.flylora import FlyLoRA
from crossroads.adapters.routers.uniform import Uniform
from crossroads.adapters.training import TrainSettings
from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.progress import progress_bar
from crossroads.core.statistics import Summary, paired_difference

PAPER = {"gains": "over LoRA and its split variants, and adapters that merge better"}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANKS, K, PLAIN_RANK = 32, 8, 8
DOMAINS = (0, 1, 2)
TOLERANCE = 0.02
FLY, MAGNITUDE, LORA = "flylora", "flylora, |z| + d", "lora"
_SELECTIONS = {FLY: "abs_biased", MAGNITUDE: "magnitude"}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured, by arm, a value a seed.

    Attributes
    ----------
    own, merged : loss of each domain's own adapter, and of the average of deltas
    others : losses of other merges
    spread : coefficient of variation of how often ranks fire
    cosine : largest of two domains' A, by seed; ``bound`` = 4 / sqrt(ranks * inputs) at its layer
    """

    own: dict[str, list[float]]
    merged: dict[str, list[float]]
    others: dict[str, list[float]] = field(default_factory=dict)
    spread: dict[str, list[float]] = field(default_factory=dict)
    cosine: list[float] = field(default_factory=list)

    def cost(self, arm: str) -> list[float]:
        """Return merged - own, by seed."""
        return [m - o for m, o in zip(self.merged[arm], self.own[arm], strict=True)]

    def difference(self, arm: str = FLY) -> Summary:
        """Return the cost of merging an arm's adapters less that of LoRA's, seed by seed."""
        return paired_difference(self.cost(arm), self.cost(LORA))

    def own_difference(self, arm: str = FLY) -> Summary:
        """Return the loss of an arm's own adapters less that of LoRA's, seed by seed."""
        return paired_difference(self.own[arm], self.own[LORA])


def verify(full: bool) -> Verdict:
    """Train the adapters, merge them and judge."""
    bed: DomainBed = SmolBed() if full else ToyBed()
    found = measure(bed)
    arms = (FLY, MAGNITUDE)
    return Verdict(
        name="flylora",
        verdict=judge(found),
        paper=PAPER,
        measured={
            "own": _rounded(found.own),
            "merged": _rounded(found.merged),
            "other_merges": _rounded(found.others),
            "cost - cost of lora": {arm: interval(found.difference(arm)) for arm in arms},
            "own - own of lora": {arm: interval(found.own_difference(arm)) for arm in arms},
            "spread_of_ranks": _rounded(found.spread),
            "largest_cosine_over_bound": rounded(found.cosine),
        },
        seeds=SEEDS,
        data=bed.description,
    )


def judge(found: Figures) -> Outcome:
    """Return the verdict; the module's text has the rules."""
    costs, own = found.difference(), found.own_difference()
    assert costs.mean is not None and own.mean is not None
    assert costs.low is not None and costs.high is not None
    if costs.low > 0:
        return "fails"
    if costs.high < 0 and own.mean <= TOLERANCE:
        return "holds"
    return "holds in direction" if costs.mean < 0 else "null"


def measure(bed: DomainBed, seeds: tuple[int, ...] = SEEDS) -> Figures:
    """Return the figures of all arms."""
    arms = (LORA, *_SELECTIONS)
    found = Figures(
        own={arm: [] for arm in arms},
        merged={arm: [] for arm in arms},
        others={"union, average": [], "one seed of A, factors averaged": []},
        spread={arm: [] for arm in _SELECTIONS},
    )
    with progress_bar("arms of flylora") as progress:
        for place, seed in enumerate(seeds):
            _measure_lora(bed, seed, found)
            for arm in _SELECTIONS:
                _measure_fly(bed, seed, arm, found)
            _measure_one_seed(bed, seed, found)
            progress(place + 1, len(seeds))
    return found


def _measure_lora(bed: DomainBed, seed: int, found: Figures) -> None:
    banks = []
    for domain in DOMAINS:
        start = bed.expert(seed, bed.names[domain], targets=TARGETS, rank=PLAIN_RANK, draw=domain)
        banks.append(_trained(bed, seed, domain, AdapterBank([start]), Alone()))
    found.own[LORA].append(_own(bed, seed, banks, [Alone()] * len(banks)))
    together = AdapterBank([bank.experts()[0] for bank in banks])
    found.merged[LORA].append(_mean(bed, seed, together, Uniform()))


def _measure_fly(bed: DomainBed, seed: int, arm: str, found: Figures) -> None:
    select = _SELECTIONS[arm]
    banks, routers = _fly_adapters(bed, seed, select, [97 * seed + d for d in DOMAINS])
    found.own[arm].append(_own(bed, seed, banks, routers))
    average = AdapterBank([delta_average(banks)])
    found.merged[arm].append(_mean(bed, seed, average, Alone()))
    found.spread[arm].append(
        statistics.mean(
            unevenness(bed, seed, domain, bank, router)
            for domain, bank, router in zip(DOMAINS, banks, routers, strict=True)
        )
    )
    if arm == FLY:
        both = FlyLoRA(k=K, ranks=RANKS, select=select, share=1 / len(banks))
        both.prepare(union(banks))
        both.bias_LE.copy_(torch.cat([router.bias_LE for router in routers], -1))
        found.others["union, average"].append(_mean(bed, seed, union(banks), both))
        found.cosine.append(largest_cosine(banks))


def _measure_one_seed(bed: DomainBed, seed: int, found: Figures) -> None:
    banks, routers = _fly_adapters(bed, seed, "abs_biased", [97 * seed] * len(DOMAINS))
    average, together = factor_average(banks), FlyLoRA(k=K)
    together.prepare(average)
    together.bias_LE.copy_(torch.stack([router.bias_LE for router in routers]).mean(0))
    loss = _mean(bed, seed, average, together)
    found.others["one seed of A, factors averaged"].append(loss)


def _fly_adapters(
    bed: DomainBed, seed: int, select: str, projections: list[int]
) -> tuple[list[AdapterBank], list[FlyLoRA]]:
    template = bed.expert(seed, "sizes", targets=TARGETS, rank=1)
    sizes = {
        layer: (lora.a_RI.shape[1], len(lora.b_OR)) for layer, lora in template.modules.items()
    }
    banks, routers = [], []
    for domain, projection in zip(DOMAINS, projections, strict=True):
        bank = fly_bank(sizes, ranks=RANKS, k=K, seed=projection, name=bed.names[domain])
        router = FlyLoRA(k=K, select=select)
        banks.append(_trained(bed, seed, domain, bank, router))
        routers.append(router)
    return banks, routers


def _trained(
    bed: DomainBed, seed: int, domain: int, bank: AdapterBank, router: Router
) -> AdapterBank:
    train_jointly(
        bed.model(seed),
        bank,
        router,
        bed.training(seed, domain),
        TrainSettings(steps=bed.steps[0], seed=seed),
        factors="up" if isinstance(router, FlyLoRA) else "all",
        lr=bed.lr,
    )
    return bank


def unevenness(bed: DomainBed, seed: int, domain: int, bank: AdapterBank, router: FlyLoRA) -> float:
    """Return the coefficient of variation of the ranks' counts on test tokens, mean over layers."""
    found: list[float] = []

    def watch(ended: Pass) -> None:
        for seen in ended.seen.values():
            assert seen.mask_BT is not None
            count_E = (seen.routing.weights[:, :, 0][seen.mask_BT] != 0).float().sum(0)
            found.append(float(count_E.std(unbiased=False) / count_E.mean()))

    domain_nll(bed, seed, bank, router, domains=[domain], watch=watch)
    return statistics.mean(found)


def largest_cosine(banks: list[AdapterBank]) -> float:
    """Return the largest |cosine| between two adapters' A, over 4 / sqrt(ranks * inputs)."""
    found = []
    for layer in banks[0].layers:
        flat = [bank.layers[layer].a_ERI.detach().flatten() for bank in banks]
        bound = 4 / len(flat[0]) ** 0.5
        found += [
            abs(float(torch.cosine_similarity(a, b, dim=0))) / bound
            for a, b in combinations(flat, 2)
        ]
    return max(found)


def _own(bed: DomainBed, seed: int, banks: list[AdapterBank], routers: Any) -> float:
    return statistics.mean(
        domain_nll(bed, seed, bank, router, domains=[domain])[0]
        for domain, bank, router in zip(DOMAINS, banks, routers, strict=True)
    )


def _mean(bed: DomainBed, seed: int, bank: AdapterBank, router: Router) -> float:
    return statistics.mean(domain_nll(bed, seed, bank, router, domains=DOMAINS))


def _rounded(figures: dict[str, list[float]]) -> dict[str, list[float]]:
    return {arm: rounded(values) for arm, values in figures.items()}
