"""Six routers in a vision transformer: expert choice beats token choice, and soft mixtures both.

The paper's claim, from large pre-training and ImageNet, is an order of qualities at fixed compute.
Here a small vision transformer reads handwritten digits with each of the six routers at *equal
slots*: 8 experts with two places each per image of 16 patches, so token choice drops what does not
fit. Token choice without a limit and a dense transformer stand beside them and decide nothing.

Rules, set before measuring. Differences are of test accuracy, seed by seed, with their 95 %
interval. (a) Choice: the mean of the three expert-choice routers less the mean of the two
token-choice ones. (b) Soft: the soft mixture less the mean of the five sparse routers, and less the
best of them (picked after the fact, so against the claim). (c) Mechanism, in every seed: expert
choice by softmax and by Sinkhorn fills every slot where token choice leaves some empty, and in the
untrained network the busiest expert of Sinkhorn token choice has less to do than that of softmax
token choice. (d) Exact, on the trained networks: every expert of those two takes its two patches of
every image; dispatch weights of a slot and combine weights of a patch sum to 1 in the soft mixture;
the columns of a Sinkhorn plan sum to S / E.
``fails``: (d) broken, or an interval of (a), or of (b) against the mean, wholly below zero;
``holds``: (c), (a) wholly above zero and (b) wholly above zero against the best; ``holds in
direction``: (c), both means above zero, and one interval wholly so; else ``null``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.routed import routed_layers
from crossroads.core.statistics import Summary, paired_difference
from crossroads.core.transport import sinkhorn_plan
from crossroads.moe.beds import ArenaBed, get_bed
from crossroads.moe.claims.arms import Arm, Arms, run_arms
from crossroads.moe.claims.reporting import above, rounded
from crossroads.moe.contract import Dense, ExpertChoice, RoutingDecision
from crossroads.moe.probing import figures, probe
from crossroads.moe.training import TrainConfig

SEEDS = (0, 1, 2)
PAPER = {"order": "soft > expert choice > token choice, at fixed compute"}
TOKEN_CHOICE = ("softmax-tc", "sinkhorn-tc")
EXPERT_CHOICE = ("softmax-ec", "sinkhorn-ec", "sparse-ec")
SPARSE = TOKEN_CHOICE + EXPERT_CHOICE
FILLED = ("softmax-ec", "sinkhorn-ec")  # the sparse plan leaves a slot without mass empty
DROPLESS = "softmax-tc, no limit"
STEPS = {False: 150, True: 600}
FIGURES = ("accuracy", "nll", "slots_used", "unserved", "load_cv", "max_load", "mflops")
ARMS = {
    **{name: Arm(router=f"{name}:capacity=1.0") for name in TOKEN_CHOICE},
    **{name: Arm(router=name) for name in (*EXPERT_CHOICE, "soft")},
    DROPLESS: Arm(router="softmax-tc"),
    "dense": Arm(router="dense"),
}
_ROUNDING = 1e-4


def verify(full: bool) -> Verdict:
    """Train the six routers and two controls with three seeds; ``full`` trains longer."""
    bed = get_bed("vision")
    config = replace(bed.config("quick"), steps=STEPS[full])
    keep = "vision-moe" if full else None
    arms = run_arms(bed, ARMS, config, seeds=SEEDS, inspect=inspect, keep=keep)
    start = {name: initial_load(bed, name, SEEDS) for name in TOKEN_CHOICE}
    found = compare(arms)
    return Verdict(
        name="vision-moe",
        verdict=judge(arms, start),
        paper=PAPER,
        measured={
            "steps": config.steps,
            "arms": arms.table(FIGURES),
            "accuracy_differences": {name: rounded(value) for name, value in found.items()},
            "best_sparse": best_sparse(arms),
            "busiest_over_mean_untrained": {
                k: [round(v, 3) for v in vs] for k, vs in start.items()
            },
            "mechanism": mechanism(arms, start),
            "exact_properties": is_exact(arms),
        },
        seeds=SEEDS,
        data=bed.description,
    )


def judge(arms: Arms, start: dict[str, list[float]]) -> Outcome:
    """Return the verdict; the module's text has the rules. ``start``: see ``initial_load``."""
    found = compare(arms)
    choice, soft = found["expert choice - token choice"], found["soft - mean sparse"]
    if not is_exact(arms) or below(choice) or below(soft):
        return "fails"
    if not mechanism(arms, start):
        return "null"
    if above(choice) and above(found["soft - best sparse"]):
        return "holds"
    positive = all(s.mean is not None and s.mean > 0 for s in (choice, soft))
    return "holds in direction" if positive and (above(choice) or above(soft)) else "null"


def compare(arms: Arms) -> dict[str, Summary]:
    """Return the differences of accuracy that decide, with their intervals."""
    soft, sparse = arms.of("soft", "accuracy"), _mean_of(arms, SPARSE)
    return {
        "expert choice - token choice": paired_difference(
            _mean_of(arms, EXPERT_CHOICE), _mean_of(arms, TOKEN_CHOICE)
        ),
        "soft - mean sparse": paired_difference(soft, sparse),
        "soft - best sparse": arms.difference("soft", best_sparse(arms), "accuracy"),
        "soft - expert choice": paired_difference(soft, _mean_of(arms, EXPERT_CHOICE)),
        "no limit - token choice": arms.difference(DROPLESS, "softmax-tc", "accuracy"),
    }


def best_sparse(arms: Arms) -> str:
    """Return the sparse router of the highest mean accuracy."""
    return max(SPARSE, key=lambda name: arms.mean(name, "accuracy"))


def mechanism(arms: Arms, start: dict[str, list[float]]) -> bool:
    """Return whether slots fill and untrained loads spread as the rules say, in every seed."""
    full = all(min(arms.of(name, "slots_used")) == 1 for name in FILLED)
    empty = all(max(arms.of(name, "slots_used")) < 1 for name in TOKEN_CHOICE)
    pairs = zip(start["sinkhorn-tc"], start["softmax-tc"], strict=True)
    return full and empty and all(spread < piled for spread, piled in pairs)


def is_exact(arms: Arms) -> bool:
    """Return whether every exact property held on every trained network."""
    return all(min(found.get("exact", (1.0,))) == 1 for found in arms.figures.values())


def below(found: Summary) -> bool:
    """Return whether a whole interval lies below zero."""
    return found.high is not None and found.high < 0


def initial_load(bed: ArenaBed, router: str, seeds: Sequence[int]) -> list[float]:
    """Return the busiest expert's load over the mean in untrained networks, a value a seed."""
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = bed.build(bed.spec(router)).eval()
        with torch.no_grad():
            output, _ = bed.probe(model)
        kinds = [layer.experts.kinds for layer in routed_layers(model)]
        found.append(figures(probe(output.records, kinds))["max_load"])
    return found


def inspect(model: nn.Module, bed: ArenaBed, config: TrainConfig) -> dict[str, float]:
    """Return use of slots, patches without expert, and whether the exact properties hold."""
    layers = routed_layers(model)
    if not layers:
        return {}
    output, _ = bed.probe(model)
    decisions = [record.decisions[0] for record in output.records]
    names = [layer.routers[0].name for layer in layers]
    found = {"exact": float(all(exact(n, d) for n, d in zip(names, decisions, strict=True)))}
    if isinstance(decisions[0].choice, Dense):
        return found  # every patch has a part in every slot
    probes = probe(output.records, [layer.experts.kinds for layer in layers])
    ran = np.array([p.experts_N for p in probes])
    return {
        **found,
        "slots_used": float(ran.mean()),  # slots are as many as patches
        "unserved": float((ran == 0).mean()),
    }


def exact(router: str, decision: RoutingDecision) -> bool:
    """Return whether a decision has the properties that its router promises exactly."""
    if isinstance(decision.choice, Dense):
        dispatch, combine = decision.choice.dispatch_GSEC, decision.choice.combine_GSEC
        return _all_near(dispatch.sum(1), 1.0) and _all_near(combine.sum((2, 3)), 1.0)
    if router in FILLED:
        return _every_slot_is_taken(decision)
    if router == "sinkhorn-tc":
        return _plan_is_balanced(decision)
    return True


def _every_slot_is_taken(decision: RoutingDecision) -> bool:
    assert isinstance(decision.choice, ExpertChoice)
    tok_GEC = decision.choice.tok_GEC.sort(-1).values
    return bool((tok_GEC >= 0).all() and (tok_GEC[..., 1:] > tok_GEC[..., :-1]).all())


def _plan_is_balanced(decision: RoutingDecision) -> bool:
    assert decision.logits_NE is not None
    logits_GSE = decision.logits_NE.double().reshape(*decision.shape, -1)
    plan_GSE = sinkhorn_plan(logits_GSE)
    share = decision.shape[1] / decision.n_experts
    return _all_near(plan_GSE.sum(1), share)


def _all_near(values: Tensor, wanted: float) -> bool:
    return bool((values - wanted).abs().max() <= _ROUNDING)


def _mean_of(arms: Arms, names: Sequence[str]) -> list[float]:
    per_seed: Any = np.mean([arms.of(name, "accuracy") for name in names], axis=0)
    return [float(value) for value in per_seed]
