"""Omni-router: layers that share a router agree on their experts, and speech is recognised better.

The paper reports word error rates 11.2 % below a dense model and 8.2 % below Switch. Here CTC
encoders are trained on strings of spoken digits, real recordings, with one shared router, with a
Switch router in every layer (same noise, so that sharing is the only difference), and dense.

Rules, set before measuring. (a) Agreement: the normalised mutual information between the experts of
adjacent layers is larger with the shared router in every seed. (b) Coherence: so is the mean length
of runs of equal experts along time, divided by what independent draws of the same loads would give
(plain run lengths grow when one expert takes all). (c) Quality: the mean word error rate is at
least 8.2 % below Switch's and 11.2 % below the dense arm's. Exact: the layers' routers are one
tensor, held once by the model. ``holds``: all of it; ``holds in direction``: (a) and (b), with a
mean CTC loss at most 0.5 % above Switch's; ``fails``: the exact property broken, (a) or (b)
reversed in every seed, or a CTC loss whose 95 % interval lies above 100.5 % of Switch's; else
``null``.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.routed import routed_layers
from crossroads.core.statistics import paired_difference
from crossroads.datasets import spoken_digits
from crossroads.moe.beds import ArenaBed, get_bed
from crossroads.moe.claims.arms import Arm, Arms, run_arms
from crossroads.moe.claims.reporting import above, differences
from crossroads.moe.training import TrainConfig

SEEDS = (0, 1, 2)
STEPS = {False: 300, True: 1500}
PAPER = {"below_dense": 0.112, "below_switch": 0.082}
ARMS = {
    "omni": Arm(router="omni"),
    "switch": Arm(router="switch:noise_std=0.1"),
    "dense": Arm(router="dense"),
}
TOLERANCE = 0.005
FIGURES = ("wer", "ctc", "agreement", "coherence", "run_length", "same_number", "load_cv", "mflops")


def verify(full: bool) -> Verdict:
    """Train the three arms with three seeds and judge; ``full`` trains five times as long.

    Raises UnavailableError where this machine has no spoken digits.
    """
    spoken_digits.load()  # before any process starts
    bed = get_bed("speech")
    config = replace(bed.config("full" if full else "quick"), steps=STEPS[full])
    arms = run_arms(
        bed, ARMS, config, seeds=SEEDS, inspect=inspect, keep="omni-router" if full else None
    )
    return Verdict(
        name="omni-router",
        verdict=judge(arms),
        paper=PAPER,
        measured={
            "steps": config.steps,
            "arms": arms.table(FIGURES),
            "wer_below": {n: round(below(arms, n), 4) for n in ("dense", "switch")},
            "differences": differences(
                arms,
                [("omni", "switch", f) for f in ("wer", "ctc", "agreement", "coherence")]
                + [("omni", "dense", "wer")],
            ),
            "one_router": bool(min(arms.of("omni", "one_router"))),
        },
        seeds=SEEDS,
        data=bed.description,
    )


def judge(arms: Arms) -> Outcome:
    """Return the verdict on the figures of all seeds; the module's text has the rules."""
    gains = [arms.difference("omni", "switch", f).per_seed for f in ("agreement", "coherence")]
    reversed_ = any(all(v is not None and v < 0 for v in gain) for gain in gains)
    allowed = tuple((1 + TOLERANCE) * v for v in arms.of("switch", "ctc"))
    too_bad = above(paired_difference(arms.of("omni", "ctc"), allowed))
    if min(arms.of("omni", "one_router")) < 1 or reversed_ or too_bad:
        return "fails"
    clear = all(v is not None and v > 0 for gain in gains for v in gain)
    if clear and min(below(arms, n) - PAPER[f"below_{n}"] for n in ("dense", "switch")) >= 0:
        return "holds"
    near = arms.mean("omni", "ctc") <= (1 + TOLERANCE) * arms.mean("switch", "ctc")
    return "holds in direction" if clear and near else "null"


def below(arms: Arms, name: str) -> float:
    """Return how far the shared router's word error rate is below another arm's, as a share."""
    return 1 - arms.mean("omni", "wer") / max(arms.mean(name, "wer"), 1e-9)


def inspect(model: nn.Module, bed: ArenaBed, config: TrainConfig) -> dict[str, float]:
    """Return how experts hold along time, and how often adjacent layers choose one number."""
    layers = routed_layers(model)
    if not layers:
        return {}
    output, _ = bed.probe(model)
    choices = []
    for record in output.records:
        decision = record.decisions[0]
        expert_BT = decision.choice.idx_NK[:, 0].reshape(decision.shape)
        choices.append(torch.where(decision.mask_N.reshape(decision.shape), expert_BT, -1))
    runs = [run_length(expert_BT) for expert_BT in choices]
    real_BT = choices[0] >= 0
    same = [(a == b)[real_BT].float().mean().item() for a, b in itertools.pairwise(choices)]
    return {
        "run_length": float(np.mean([plain for plain, _ in runs])),
        "coherence": float(np.mean([plain / chance for plain, chance in runs])),
        "same_number": float(np.mean(same)),
        "one_router": float(is_one(model)),
    }


def run_length(expert_BT: Tensor) -> tuple[float, float]:
    """Return the mean length of runs of equal experts, and that of draws with the same loads.

    -1 is padding, at the end of a row; runs end with their row. The second figure is the
    expectation for independent draws in rows of the same lengths: tokens / (rows + (tokens - rows)
    * chance that two draws differ).
    """
    real_BT = expert_BT >= 0
    starts_BT = real_BT.clone()
    starts_BT[:, 1:] &= expert_BT[:, 1:] != expert_BT[:, :-1]
    tokens, rows = int(real_BT.sum()), int(real_BT.any(-1).sum())
    share_E = torch.bincount(expert_BT[real_BT]).double() / tokens
    differ = 1 - float(share_E.square().sum())
    return tokens / int(starts_BT.sum()), tokens / (rows + (tokens - rows) * differ)


def is_one(model: nn.Module) -> bool:
    """Return whether all routed layers decide by one tensor that the model holds once."""
    gates = [layer.routers[0].gate.weight for layer in routed_layers(model)]
    held = [name for name, value in model.state_dict().items() if value.shape == gates[0].shape]
    shared = [n for n in held if model.state_dict()[n].data_ptr() == gates[0].data_ptr()]
    return len({gate.data_ptr() for gate in gates}) == 1 and len(shared) == 1
