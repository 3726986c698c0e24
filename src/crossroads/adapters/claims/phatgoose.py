"""PHATGOOSE: gates trained apart beat earlier post-hoc routing on tasks that no expert knows.

The paper combines T5-XL experts on T0's held-out tasks and BIG-bench. Here the shipped experts on
SmolLM2-135M are routed over, on the tasks they were trained on (held in) and on tasks none was
trained on (held out); figures are nats per answer token, means over tasks, three paired seeds.

Rules, set before measuring. ``holds``: on held-out tasks PHATGOOSE (top-2) is below the base model,
the uniform merge, retrieval and average activation, the 95 % interval of each paired difference
below 0, and on held-in tasks it closes at least 70 % of the way from uniform merge to oracle
(median of seeds). ``holds in direction``: the held-out mean is below those of the base model, the
uniform merge and retrieval, and the way closed is at least 50 %. ``fails``: the held-out interval
of PHATGOOSE - uniform lies above 0, or the way closed is negative in the mean; else ``null``.

Reported and deciding nothing: how often the own expert is among a token's two (the paper notes that
good routing need not be the oracle's), and documents that are half Python and half Shakespeare.
``full`` measures more rows and, beside them, top-1 and Arrow, and one LoRA trained on all tasks.

The mean inputs that average activation routes by are cheap here: of 2 training batches an expert,
about 1,000 tokens, where ``full`` takes all that the experts were trained on. So few put average
activation too low: with 8 it went 0.49 of the way held in, with all 80 it went 0.63. Of the rules,
it has a part in ``holds`` alone.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from crossroads.adapters.calls import calling
from crossroads.adapters.claims.collection_bed import BASE, SEEDS, CollectionBed
from crossroads.adapters.claims.mixed_documents import (
    KINDS,
    best_choice,
    documents,
    nll_B,
    votes,
)
from crossroads.adapters.claims.multitask import multitask_means
from crossroads.adapters.collection.batches import batch_of_rows, fitting
from crossroads.adapters.collection.shipped import read_manifest, shipped_folder
from crossroads.adapters.routers import build_router
from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.statistics import Summary

NAME = "phatgoose"
EARLIER = ("uniform", "retrieval", "average-activation")
PAPER = {"held_out_above": "retrieval, average activation, merged experts", "abstract": True}
CLOSED, CLOSED_SOMEWHAT = 0.7, 0.5
_QUICK_ROWS, _FULL_ROWS = 4, 60
_QUICK_BATCHES = 2  # read for a mean activation
_DOCUMENTS = 6
_VOTE_ROWS = 4


def verify(full: bool) -> Verdict:
    """Measure the arms and judge."""
    bed = CollectionBed(rows=_FULL_ROWS if full else _QUICK_ROWS)
    batches = read_manifest(shipped_folder())["recipe"]["steps"] if full else _QUICK_BATCHES
    bed.add_activations(batches)
    return Verdict(
        name=NAME,
        verdict=judge(bed),
        paper=PAPER,
        measured=measured(bed, full) | {"batches_of_mean_inputs": batches},
        seeds=SEEDS,
        data=bed.description,
    )


def judge(bed: CollectionBed) -> Outcome:
    """Return the verdict; the module's text has the rules."""
    against = {arm: bed.difference(NAME, arm, held_in=False) for arm in (BASE, *EARLIER)}
    closed = bed.closed(NAME)
    uniform = against["uniform"]
    if statistics.mean(closed) < 0 or (uniform.low is not None and uniform.low > 0):
        return "fails"
    if all(_below(found) for found in against.values()) and statistics.median(closed) >= CLOSED:
        return "holds"
    means = [against[arm].mean for arm in (BASE, "uniform", "retrieval")]
    is_lower = all(mean is not None and mean < 0 for mean in means)
    if is_lower and statistics.median(closed) >= CLOSED_SOMEWHAT:
        return "holds in direction"
    return "null"


def measured(bed: CollectionBed, full: bool) -> dict[str, Any]:
    """Return the figures of all arms as plain data."""
    arms = [BASE, *EARLIER, NAME, *(["phatgoose:k=1", "arrow"] if full else [])]
    found: dict[str, Any] = {
        "nll": {
            **{arm: nll_of(bed, arm) for arm in arms},
            "oracle": {"held_in": rounded(bed.means("oracle", held_in=True))},
        },
        "way_closed": {arm: rounded(bed.closed(arm)) for arm in arms if arm != BASE},
        "held_out: phatgoose - other": {
            arm: interval(bed.difference(NAME, arm, held_in=False)) for arm in (BASE, *EARLIER)
        },
        "own_expert_in_top_2": own_expert_share(bed),
        "by_chance": round(2 / len(bed.bank.names), 3),
    }
    if all(kind in bed.bank.names for kind in KINDS):
        found["mixed_documents"] = mixed(bed)
    if full:
        found["nll"]["multitask"] = multitask_means(bed)
    return found


def nll_of(bed: CollectionBed, arm: str) -> dict[str, list[float]]:
    """Return an arm's means by kind of task, a value a seed."""
    return {
        kind: rounded(bed.means(arm, held_in=kind == "held_in")) for kind in ("held_in", "held_out")
    }


def own_expert_share(bed: CollectionBed) -> dict[str, float]:
    """Return the share of (layer, token) pairs whose two experts include the task's own."""
    routed = bed.routed(build_router(NAME))
    found = {}
    try:
        for task in bed.tasks(held_in=True):
            rows = fitting(bed.tokenizer, task, "test")[:_VOTE_ROWS]
            batch = batch_of_rows(bed.tokenizer, rows, length=task.length)
            with torch.no_grad(), calling(mask=batch.mask_BT):
                bed.model.base_model(
                    input_ids=batch.ids_BT,
                    attention_mask=batch.mask_BT.long(),
                    use_cache=False,
                )
            own = bed.bank.names.index(task.name)
            hits = [
                (routing.dense(len(bed.bank.names))[:, :, 0, own] > 0)[batch.mask_BT]
                for routing in routed.last_routings.values()
            ]
            found[task.name] = round(float(torch.cat(hits).float().mean()), 3)
    finally:
        routed.unwrap()
    return found


def mixed(bed: CollectionBed) -> dict[str, Any]:
    """Return what routing by token makes of documents of two kinds."""
    batch, texts = documents(bed, _DOCUMENTS)
    arms = {arm: nll_B(bed, batch, arm, texts) for arm in (NAME, "phatgoose:k=1")}
    best = best_choice(bed, batch)
    return {
        "nll": {
            **{arm: round(float(found.mean()), 4) for arm, found in arms.items()},
            "the better expert of each document": round(float(best.mean()), 4),
        },
        "documents_below_best_choice": int((arms[NAME] < best).sum()),
        "documents": len(texts),
        "first_choices": votes(bed, batch),
    }


def interval(found: Summary) -> dict[str, Any]:
    """Return a summary as plain data."""
    rounded_ends = {
        end: None if value is None else round(value, 4)
        for end, value in (("mean", found.mean), ("low", found.low), ("high", found.high))
    }
    return {**rounded_ends, "per_seed": rounded([v for v in found.per_seed if v is not None])}


def rounded(values: Any) -> list[float]:
    """Return numbers with four digits."""
    return [round(float(value), 4) for value in values]


def _below(found: Summary) -> bool:
    return found.high is not None and found.high < 0
