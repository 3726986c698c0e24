"""LoRA-Mixer: routers over frozen experts, trained on little data, balanced and peaked.

The paper mixes LoRA experts inside the attention projections of LLaMA3-8B and others; on GSM8K,
HumanEval and MedQA it reports +7.61, +4.88 and +3.08 points over the base model. Here four experts
(rank 4; q, k, v, o) are trained on a domain each and frozen; then gates alone are trained on at
most 2,000 sequences of all domains. Three paired seeds; figures are nats per answer token on other
rows, means over domains. ``full`` takes SmolLM2 instead of a toy.

Rules, set before measuring, on the loss that lowers the entropy (k = 3 at inference). ``holds``
when the 95 % intervals of its paired differences to the uniform merge and to the same router
trained without the entropy term both lie below 0; ``holds in direction`` when neither mean
difference is above 0; ``fails`` when either interval lies above 0; else ``null``.

Reported and deciding nothing: the loss with the sign that is printed, the base model, every
domain's own expert, and how peaked each router is.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
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
from crossroads.adapters.experts import Alone, train_expert
from crossroads.adapters.joint import train_jointly
from crossroads.adapters.passes import Pass
from crossroads.adapters.routers.lora_mixer import LoRAMixer
from crossroads.adapters.routers.uniform import Uniform
from crossroads.adapters.training import TrainSettings
from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.gating import entropy, softmax
from crossroads.core.progress import progress_bar
from crossroads.core.statistics import Summary, paired_difference

PAPER = {"over_base": {"gsm8k": 7.61, "humaneval": 4.88, "medqa": 3.08}, "abstract": True}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK = 4
MINE, PLAIN, PRINTED = "lora-mixer", "balance alone", "as printed"
ARMS: dict[str, dict[str, Any]] = {
    MINE: {},
    PLAIN: {"peaked": 0.0},
    PRINTED: {"entropy": "as_printed"},
}
_SEQUENCES = 2_000


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Nats per answer token and mean entropy over ln E, by arm, a value a seed."""

    nll: dict[str, list[float]]
    entropy: dict[str, list[float]]

    def difference(self, other: str) -> Summary:
        """Return LoRA-Mixer - other, seed by seed."""
        return paired_difference(self.nll[MINE], self.nll[other])


def verify(full: bool) -> Verdict:
    """Train experts and gates and judge."""
    bed: DomainBed = SmolBed() if full else ToyBed()
    found = measure(bed)
    return Verdict(
        name="lora-mixer",
        verdict=judge(found),
        paper=PAPER,
        measured={
            "nll": {arm: rounded(values) for arm, values in found.nll.items()},
            "lora-mixer - other": {
                arm: interval(found.difference(arm)) for arm in found.nll if arm != MINE
            },
            "entropy": {arm: rounded(values) for arm, values in found.entropy.items()},
        },
        seeds=SEEDS,
        data=bed.description,
    )


def judge(found: Figures) -> Outcome:
    """Return the verdict; the module's text has the rules."""
    against = [found.difference(arm) for arm in ("uniform", PLAIN)]
    if any(one.low is not None and one.low > 0 for one in against):
        return "fails"
    if all(one.high is not None and one.high < 0 for one in against):
        return "holds"
    is_lower = all(one.mean is not None and one.mean <= 0 for one in against)
    return "holds in direction" if is_lower else "null"


def measure(bed: DomainBed, seeds: tuple[int, ...] = SEEDS) -> Figures:
    """Return the figures of all arms."""
    found = Figures(
        nll={arm: [] for arm in ("base", "uniform", "own expert", *ARMS)},
        entropy={arm: [] for arm in ARMS},
    )
    with progress_bar("arms of lora-mixer") as progress:
        for place, seed in enumerate(seeds):
            bank = experts(bed, seed)
            found.nll["base"].append(_mean(bed, seed, None, None))
            found.nll["uniform"].append(_mean(bed, seed, bank, Uniform()))
            found.nll["own expert"].append(_own(bed, seed, bank))
            for arm, settings in ARMS.items():
                router = LoRAMixer(seed=seed, **settings)
                train_gates(bed, seed, bank, router)
                found.nll[arm].append(_mean(bed, seed, bank, router))
                found.entropy[arm].append(peakedness(bed, seed, bank, router))
            progress(place + 1, len(seeds))
    return found


def experts(bed: DomainBed, seed: int) -> AdapterBank:
    """Return an expert of every domain, trained on it alone."""
    made = []
    for domain, name in enumerate(bed.names):
        start = bed.expert(seed, name, targets=TARGETS, rank=RANK, draw=domain)
        settings = TrainSettings(steps=bed.steps[0], seed=seed)
        batch_of = bed.training(seed, domain)
        made.append(train_expert(bed.model(seed), start, batch_of, settings, lr=bed.lr)[0])
    return AdapterBank(made)


def train_gates(bed: DomainBed, seed: int, bank: AdapterBank, router: LoRAMixer) -> None:
    """Train the gates alone, on at most 2,000 sequences of all domains."""
    batch_of = bed.training(seed + 1000)
    rows = len(batch_of(0).ids_BT)
    train_jointly(
        bed.model(seed),
        bank,
        router,
        batch_of,
        TrainSettings(steps=min(bed.steps[2], _SEQUENCES // rows), seed=seed),
        factors="none",
        lr=bed.gate_lr,
    )


def peakedness(bed: DomainBed, seed: int, bank: AdapterBank, router: LoRAMixer) -> float:
    """Return the mean entropy of the routers' probabilities on test tokens, over ln E."""
    seen: list[float] = []

    def watch(ended: Pass) -> None:
        for routing in ended.decided.values():
            assert routing.logits is not None and ended.call.mask_BT is not None
            nats_BT = entropy(softmax(routing.logits[:, :, 0]))
            seen.append(float(nats_BT[ended.call.mask_BT].mean()))

    domain_nll(bed, seed, bank, router, watch=watch)
    return statistics.mean(seen) / float(torch.tensor(float(bank.n_experts)).log())


def _own(bed: DomainBed, seed: int, bank: AdapterBank) -> float:
    return statistics.mean(
        domain_nll(bed, seed, bank.subset([name]), Alone(), domains=[domain])[0]
        for domain, name in enumerate(bed.names)
    )


def _mean(bed: DomainBed, seed: int, bank: AdapterBank | None, router: Router | None) -> float:
    return statistics.mean(domain_nll(bed, seed, bank, router))
