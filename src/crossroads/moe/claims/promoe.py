"""ProMoE: contrastive guidance keeps prototypes apart and experts alive in a diffusion transformer.

The paper trains on ImageNet for 500,000 steps (FID 2.79 at size L, guidance 1.5), far from here.
Here small transformers draw real 8 x 8 digits. Rectified flow: ProMoE (four routed experts, one
unconditional, one shared), the same without its contrastive loss, token-choice experts with a
shared one and a balance loss, and dense, at equal active compute. DDPM: ProMoE whose experts choose
tokens, and dense.

Rules, set before measuring. (a) Mechanism: in every seed the mean cosine between the prototypes of
a layer is lower with the contrastive loss than without, and no fewer routed experts are alive (a
share of conditional tokens above a tenth of the mean; mean over layers). (b) The mean held-out
velocity error is at most 1 % above dense. (c) So it is against token choice, and with ``full``,
where models train long enough to draw, the mean Frechet distance is not above token choice's. (d)
Under DDPM the mean noise error is at most 1 % above dense. Exact: sequences without a condition run
the unconditional expert alone, with weight 1, and conditional tokens never do. ``holds``: all of
it; ``holds in direction``: (a) and (b); ``fails``: the exact property broken, cosines higher with
the loss in every seed, or an error under rectified flow whose 95 % interval lies above 101 % of
dense; else ``null``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.routed import ModelOutput, RouteContext, routed_layers
from crossroads.core.statistics import paired_difference
from crossroads.moe.beds import ArenaBed, get_bed
from crossroads.moe.beds.diffusion import NUM_PATCHES
from crossroads.moe.claims.arms import Arm, Arms, run_arms
from crossroads.moe.claims.reporting import above, differences
from crossroads.moe.contract import RoutingDecision
from crossroads.moe.conversions import to_token_choice
from crossroads.moe.diagnostics import DEAD_SHARE, mean_pairwise_cosine
from crossroads.moe.execution import per_token
from crossroads.moe.routers.promoe import ProMoE
from crossroads.moe.training import TrainConfig

SEEDS = (0, 1, 2)
STEPS = {False: 200, True: 1000}
PAPER = {"fid_l": 2.79, "inception_score_l": 244.21, "steps": 500_000}
WITH_UNCONDITIONAL = {"n_experts": 5}  # four routed ones, as many as token choice has
FLOW_ARMS = {
    "promoe": Arm(router="promoe", changes=WITH_UNCONDITIONAL),
    "no contrastive loss": Arm(router="promoe:rcl=0", changes=WITH_UNCONDITIONAL),
    "token choice": Arm(router="switch", changes={"shared": 1}),
    "dense": Arm(router="dense"),
}
DDPM_ARMS = {
    "promoe": Arm(router="promoe:choice=expert", changes=WITH_UNCONDITIONAL),
    "dense": Arm(router="dense"),
}
TOLERANCE = 0.01
FIGURES = ("error", "frechet", "recognised", "cosine", "alive", "weight", "load_cv", "mflops")


def verify(full: bool) -> Verdict:
    """Train four arms by rectified flow and two by DDPM, with three seeds, and judge.

    ``full`` trains for 1,000 steps.
    """
    flow_bed, ddpm_bed = get_bed("diffusion"), get_bed("diffusion", objective="ddpm")
    config = replace(flow_bed.config("full" if full else "quick"), steps=STEPS[full])
    keep = "promoe" if full else None
    flow = run_arms(flow_bed, FLOW_ARMS, config, seeds=SEEDS, inspect=inspect, keep=keep)
    ddpm = run_arms(ddpm_bed, DDPM_ARMS, config, seeds=SEEDS, inspect=inspect, keep=keep)
    return Verdict(
        name="promoe",
        verdict=judge(flow, ddpm),
        paper=PAPER,
        measured={
            "steps": config.steps,
            "rectified_flow": flow.table(FIGURES),
            "ddpm": ddpm.table(FIGURES),
            "differences": differences(
                flow,
                [
                    ("promoe", "no contrastive loss", "cosine"),
                    ("promoe", "no contrastive loss", "alive"),
                    ("promoe", "no contrastive loss", "error"),
                    ("promoe", "dense", "error"),
                    ("promoe", "token choice", "error"),
                    *([("promoe", "token choice", "frechet")] if full else []),
                ],
            ),
            "differences_ddpm": differences(ddpm, [("promoe", "dense", "error")]),
            "two_steps": exact(flow, ddpm),
        },
        seeds=SEEDS,
        data=f"{flow_bed.description}, and DDPM",
    )


def judge(flow: Arms, ddpm: Arms) -> Outcome:
    """Return the verdict on the figures of all seeds; the module's text has the rules."""
    cosine = flow.difference("promoe", "no contrastive loss", "cosine").per_seed
    alive = flow.difference("promoe", "no contrastive loss", "alive").per_seed
    allowed = tuple((1 + TOLERANCE) * v for v in flow.of("dense", "error"))
    too_bad = above(paired_difference(flow.of("promoe", "error"), allowed))
    if not exact(flow, ddpm) or too_bad or all(v is not None and v > 0 for v in cosine):
        return "fails"
    apart = all(v is not None and v < 0 for v in cosine)
    lively = all(v is not None and v >= 0 for v in alive)
    if not (apart and lively and _near(flow, "dense")):
        return "null"
    draws = "frechet" in flow.figures["promoe"]
    strong = (
        _near(ddpm, "dense")
        and _near(flow, "token choice")
        and not (draws and flow.mean("promoe", "frechet") > flow.mean("token choice", "frechet"))
    )
    return "holds" if strong else "holds in direction"


def _near(arms: Arms, other: str) -> bool:
    return arms.mean("promoe", "error") <= (1 + TOLERANCE) * arms.mean(other, "error")


def exact(flow: Arms, ddpm: Arms) -> bool:
    """Return whether the unconditional expert served exactly the unconditional sequences."""
    return min(*flow.of("promoe", "two_steps"), *ddpm.of("promoe", "two_steps")) == 1


def inspect(model: nn.Module, bed: ArenaBed, config: TrainConfig) -> dict[str, float]:
    """Return how prototypes and experts fare, and whether both steps of the router hold."""
    layers = routed_layers(model)
    if not layers or not isinstance(layers[0].routers[0], ProMoE):
        return {}
    output, _ = bed.probe(model)
    loads, weights = [], []
    for record in output.records:
        load_E, weight = conditional_load(record.decisions[0])
        loads.append(load_E)
        weights.append(weight)
    routers = [layer.routers[0] for layer in layers]
    return {
        "cosine": float(np.mean([mean_pairwise_cosine(r.prototypes) for r in routers])),
        "alive": float(np.mean([alive(load_E) for load_E in loads])),
        "weight": float(np.mean(weights)),
        "two_steps": float(two_steps(mixed_answer(model), routers[0].n_routed)),
    }


def conditional_load(decision: RoutingDecision) -> tuple[np.ndarray[Any, Any], float]:
    """Return the routed experts' shares of the picks, and the mean absolute weight of a pick."""
    assert decision.choice is not None
    choice = to_token_choice(decision.choice)
    n_routed = decision.n_experts - 1
    routed_NK = (choice.idx_NK >= 0) & (choice.idx_NK < n_routed)
    count_E = torch.bincount(choice.idx_NK[routed_NK], minlength=n_routed).double()
    weight = float(choice.w_NK.detach()[routed_NK].abs().mean()) if bool(routed_NK.any()) else 0.0
    return (count_E / count_E.sum().clamp_min(1)).numpy(), weight


def alive(load_E: np.ndarray[Any, Any]) -> int:
    """Return how many experts have at least a tenth of the mean load."""
    return int((load_E >= DEAD_SHARE / len(load_E)).sum())


def mixed_answer(model: nn.Module) -> ModelOutput:
    """Return the answer to noise, every second image of which has lost its condition."""
    made = torch.Generator().manual_seed(0)
    image = torch.randn(8, 1, 8, 8, generator=made)
    label = torch.arange(8)
    label[1::2] = 10
    context = RouteContext(cond={"token_id": torch.zeros(8, NUM_PATCHES, dtype=torch.int64)})
    answer: ModelOutput = model(image, torch.full((8,), 500.0), label, context=context)
    return answer


def two_steps(output: ModelOutput, n_routed: int) -> bool:
    """Return whether images with odd numbers, and they alone, run the last expert with weight 1."""
    for record in output.records:
        decision = record.decisions[0]
        choice = per_token(to_token_choice(decision.choice), decision, *decision.shape)
        is_odd_N = (torch.arange(decision.shape[0]) % 2 == 1).repeat_interleave(decision.shape[1])
        last_NK = choice.idx_NK == n_routed
        others_NK = (choice.idx_NK >= 0) & ~last_NK
        if bool(last_NK[~is_odd_N].any()) or bool(others_NK[is_odd_N].any()):
            return False
        weight_N = (choice.w_NK * last_NK).sum(-1)
        if not bool((weight_N[is_odd_N] == 1).all()):
            return False
    return True
