"""MHR: multi-head routing beats Poly at equal size of the bank, and so does the mean of its skills.

The paper trains T5-XL on T0's tasks and on Super-NaturalInstructions and adapts to new tasks from
few examples. Here a small language model learns eight tasks made of four skills, and adapts to
three tasks that combine the skills anew, from 32 examples each (``skill_bed``). Every bank has the
numbers of eight skills of rank 1, the paper's setting on T0: one shared LoRA of rank 8, Poly
(1 head) and MHR (8 heads). Figures are nats per symbol on rows of the new tasks, means over tasks.

Rules, set before measuring, for seeds that no setting was chosen on. Let d be MHR - Poly, both
adapted in full, and m the share of MHR's gain by full adaptation over equal weights untrained that
adapting the mean skill alone reaches. ``holds``: the 95 % interval of d lies below 0 and the median
of m is at least 0.9. ``holds in direction``: the mean of d is below 0 and the median of m at least
0.8. ``fails``: the interval of d lies above 0. Else ``null``.

Reported and deciding nothing: logits alone (MHR-z), the shared LoRA, how far routing has left equal
weights, and the cosine between gradients of different tasks, the paper's reason for the gain.
``full`` adds SmolLM2 on four real tasks: the loss on tasks trained on, against one shared LoRA.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.calls import calling
from crossroads.adapters.claims.skill_bed import TARGETS, ShiftTasks, base_model, runs_of
from crossroads.adapters.claims.text_tasks import TARGETS as TEXT_TARGETS
from crossroads.adapters.claims.text_tasks import TextTasks
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers.poly import Poly
from crossroads.adapters.skills import (
    Variant,
    adapt,
    factors,
    head_entropy,
    new_skills,
    train_skills,
)
from crossroads.adapters.texts import TextBatch, answer_nll
from crossroads.adapters.training import TrainSettings
from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.progress import progress_bar
from crossroads.core.statistics import paired_difference

NAME = "mhr"
SEEDS = (1, 2, 3)
PAPER = {
    "order": "MHR above Poly at equal size; MHR-mu as good as MHR; MHR-z near with few numbers"
}
SEEN = ShiftTasks.of_skills([[0], [1], [2], [3], [0, 1], [2, 3], [0, 2], [1, 3]])
NEW = ShiftTasks.of_skills([[0, 3], [1, 2], [0, 1, 2]], first=len(SEEN))
MEAN, MEAN_SOMEWHAT = 0.9, 0.8
_NUMBERS = 8  # skills x rank
_ARMS = {"shared": (1, 1), "poly": (8, 1), "mhr": (8, 8)}  # skills and heads
_RATE, _STEPS, _ROWS = 1e-2, 200, 32
_FEW_STEPS, _FEW_BATCHES, _FEW_ROWS = 60, 2, 16
_TEST_ROWS = 256
_TEXT_SKILLS, _TEXT_RANK, _TEXT_STEPS, _TEXT_ROWS = 4, 4, 60, 40
_TEXT_RATE = 3e-3
Values = dict[str, float]


def verify(full: bool) -> Verdict:
    """Measure the arms and judge."""
    runs = runs_of(run, SEEDS)
    measured = figures(runs)
    data = f"{len(SEEN)} tasks of shifted symbols, {len(NEW)} new ones from 32 examples each"
    if full:
        texts = TextTasks(rows=_TEXT_ROWS)
        measured["smollm2"] = on_texts(texts, SEEDS)
        data += f"; {texts.description}"
    return Verdict(
        name=NAME, verdict=judge(runs), paper=PAPER, measured=measured, seeds=SEEDS, data=data
    )


def judge(runs: Sequence[Mapping[str, float]]) -> Outcome:
    """Return the verdict; the module's text has the rules."""
    gap = paired_difference([r["mhr full"] for r in runs], [r["poly full"] for r in runs])
    mean = statistics.median(reached(r, "mhr mu") for r in runs)
    if gap.low is not None and gap.low > 0:
        return "fails"
    if gap.high is not None and gap.high < 0 and mean >= MEAN:
        return "holds"
    if gap.mean is not None and gap.mean < 0 and mean >= MEAN_SOMEWHAT:
        return "holds in direction"
    return "null"


def reached(run: Mapping[str, float], arm: str) -> float:
    """Return the share of MHR's gain by full adaptation that an arm reaches."""
    start = run["mhr untrained"]
    return (start - run[arm]) / (start - run["mhr full"])


def figures(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the figures of all arms as plain data, a value a seed."""
    gap = paired_difference([r["mhr full"] for r in runs], [r["poly full"] for r in runs])
    return {
        **{name: [round(r[name], 4) for r in runs] for name in runs[0]},
        "mhr - poly, new tasks": {n: _rounded(getattr(gap, n)) for n in ("mean", "low", "high")},
        "share of the gain": {
            variant: [round(reached(r, f"mhr {variant}"), 3) for r in runs]
            for variant in ("mu", "z")
        },
    }


def run(seed: int) -> Values:
    """Return the figures of one seed: trained tasks by arm, new tasks by arm and variant."""
    model, found = base_model(seed), {}
    for arm, (skills, heads) in _ARMS.items():
        bank = new_skills(
            model,
            targets=TARGETS,
            skills=skills,
            rank=_NUMBERS // skills,
            heads=heads,
            seed=seed,
        )
        router = Poly(tasks=len(SEEN), uniform=arm == "shared", seed=seed)
        settings = TrainSettings(steps=_STEPS, seed=seed)
        train_skills(model, bank, router, SEEN.training(_ROWS, seed), settings, lr=_RATE)
        found[f"{arm} trained tasks"] = nll(model, bank, router, SEEN.test(_TEST_ROWS, seed))
        found[f"{arm} gradient cosine"] = agreement(model, bank, router, seed)
        found |= {
            f"{arm} {name}": value for name, value in _adapted(model, bank, seed, arm).items()
        }
        if arm != "shared":
            found[f"{arm} entropy of routing"] = head_entropy(router, bank)
    return found


def _adapted(model: nn.Module, bank: AdapterBank, seed: int, arm: str) -> Values:
    """Return the mean over new tasks by variant, and before any step."""
    settings = TrainSettings(steps=_FEW_STEPS, seed=seed)
    variants: tuple[Variant, ...] = ("full",) if arm == "shared" else ("full", "z", "mu")
    found: dict[str, list[float]] = {}
    for place in range(len(NEW)):
        task = NEW.only(place)
        test = task.test(_TEST_ROWS, seed)
        equal = Poly(uniform=True)
        found.setdefault("untrained", []).append(nll(model, bank, equal, test))
        for variant in variants:
            few = task.few(_FEW_BATCHES, _FEW_ROWS, seed)
            made = adapt(model, bank, few, settings, variant=variant, lr=_RATE)
            found.setdefault(variant, []).append(nll(model, made.bank, made.router, test))
    return {name: statistics.fmean(values) for name, values in found.items()}


def nll(model: nn.Module, bank: AdapterBank, router: Poly, batch: TextBatch) -> float:
    """Return nats per scored symbol."""
    routed = RoutedModel(model, bank, router)
    try:
        with torch.no_grad(), calling(task_ids=batch.task_ids_B):
            return float(answer_nll(routed.model, batch).mean())
    finally:
        routed.unwrap()


def agreement(model: nn.Module, bank: AdapterBank, router: Poly, seed: int) -> float:
    """Return the mean cosine between the gradients of two tasks, by the numbers of the bank."""
    routed, gradients = RoutedModel(model, bank, router), []
    parameters = factors(bank)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        for place in range(len(SEEN)):
            batch = SEEN.only(place).test(_ROWS, seed)
            ids = torch.full_like(batch.ids_BT[:, 0], place)
            with calling(task_ids=ids, training=True):
                loss = answer_nll(routed.model, batch).mean()
            flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
            gradients.append(flat / flat.norm().clamp_min(1e-30))
    finally:
        routed.unwrap()
        for parameter in parameters:
            parameter.requires_grad_(False)
    return statistics.fmean(float(a @ b) for a, b in combinations(gradients, 2))


def on_texts(texts: TextTasks, seeds: Sequence[int], steps: int = _TEXT_STEPS) -> dict[str, Any]:
    """Return nats per answer token on tasks trained on, means over tasks, a value a seed."""
    found: dict[str, list[float]] = {}
    numbers = _TEXT_SKILLS * _TEXT_RANK
    for seed in seeds:
        for arm, (skills, heads) in (("shared", (1, 1)), ("poly", (4, 1)), ("mhr", (4, 8))):
            bank = new_skills(
                texts.model,
                targets=TEXT_TARGETS,
                skills=skills,
                rank=numbers // skills,
                heads=heads,
                seed=seed,
            )
            router = Poly(tasks=len(texts.names), uniform=arm == "shared", seed=seed)
            with progress_bar(f"{arm} on texts, seed {seed}") as progress:
                train_skills(
                    texts.model,
                    bank,
                    router,
                    texts.training(seed),
                    TrainSettings(steps=steps, seed=seed),
                    lr=_TEXT_RATE,
                    progress=progress,
                )
            values = texts.nll(bank, router, seed=seed)
            found.setdefault(arm, []).append(round(statistics.fmean(values.values()), 4))
            if arm != "shared":
                entropy = round(head_entropy(router, bank), 4)
                found.setdefault(f"{arm} entropy of routing", []).append(entropy)
    return {"steps": steps, **found}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
