"""GLIDER: a sentence about the task, beside the gates, helps where an expert of the task exists.

The paper reports clearly better held-in results than PHATGOOSE's at similar or better held-out
ones. Here the shipped experts on SmolLM2-135M, embeddings by MiniLM, lambda by the automatic switch
(100 where the nearest expert is nearer than a threshold calibrated on the experts' own examples,
else 3), never by the evaluation set. Every prompt is its own query; an expert's embedding is the
mean of 32 prompts of its training data. Figures are nats per answer token, means over tasks, three
paired seeds.

Rules, set before measuring. ``holds``: on held-in tasks GLIDER is below PHATGOOSE, the 95 %
interval of the paired difference below 0, and nearer to the oracle; on held-out tasks its mean is
at most 0.02 above; the nearest expert is the own one for at least 90 % of held-in prompts. ``holds
in direction``: the held-in mean is at most 0.005 above PHATGOOSE's and the held-out mean at most
0.02. ``fails``: the whole interval lies above 0.005 held in, or above 0.02 held out; else ``null``.

Reported and deciding nothing: which prompts count as known, and whether documents that are half
Python and half Shakespeare do not. ``full`` measures more rows, lambda fixed at 3 and at 100, and
one sentence a task, written by SmolLM2 from three training examples, in place of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.claims.collection_bed import SEEDS, CollectionBed
from crossroads.adapters.claims.mixed_documents import KINDS, documents, nll_B
from crossroads.adapters.claims.phatgoose import interval, nll_of, rounded
from crossroads.adapters.collection.evaluation import draw_rows
from crossroads.adapters.collection.rows import Row
from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.embedding import embed, embed_experts
from crossroads.adapters.instructions import SHOWN, Example, SmolLM2Instructions
from crossroads.adapters.routers.glider import Glider
from crossroads.core.catalog import Outcome, Verdict

NAME, LOCAL = "glider", "phatgoose"
PAPER = {"held_in": "clearly better than PHATGOOSE", "held_out": "similar or slightly better"}
KNOWN = 0.9  # share of held-in prompts whose nearest expert is the own one
_WORSE_IN, _WORSE_OUT = 0.005, 0.02  # nats
_QUICK_ROWS, _FULL_ROWS = 4, 60
_FIXED = ("glider:weight=3", "glider:weight=100")
_DOCUMENTS = 6


def verify(full: bool) -> Verdict:
    """Measure the arms and judge."""
    bed = CollectionBed(rows=_FULL_ROWS if full else _QUICK_ROWS)
    return Verdict(
        name=NAME,
        verdict=judge(bed),
        paper=PAPER,
        measured=measured(bed, full),
        seeds=SEEDS,
        data=bed.description,
    )


def judge(bed: CollectionBed) -> Outcome:
    """Return the verdict; the module's text has the rules."""
    held_in = bed.difference(NAME, LOCAL, held_in=True)
    held_out = bed.difference(NAME, LOCAL, held_in=False)
    if _above(held_in.low, _WORSE_IN) or _above(held_out.low, _WORSE_OUT):
        return "fails"
    if _above(held_in.mean, _WORSE_IN) or _above(held_out.mean, _WORSE_OUT):
        return "null"
    is_lower = held_in.high is not None and held_in.high < 0
    is_nearer = off_oracle(bed, NAME) < off_oracle(bed, LOCAL)
    knows = nearest_share(bed)["all"] >= KNOWN
    return "holds" if is_lower and is_nearer and knows else "holds in direction"


def measured(bed: CollectionBed, full: bool) -> dict[str, Any]:
    """Return the figures of all arms as plain data."""
    arms = [LOCAL, NAME, *(_FIXED if full else ())]
    found: dict[str, Any] = {
        "nll": {
            **{arm: nll_of(bed, arm) for arm in arms},
            "oracle": {"held_in": rounded(bed.means("oracle", held_in=True))},
        },
        "glider - phatgoose": {
            kind: interval(bed.difference(NAME, LOCAL, held_in=kind == "held_in"))
            for kind in ("held_in", "held_out")
        },
        "away_from_oracle": {arm: round(off_oracle(bed, arm), 4) for arm in (LOCAL, NAME)},
        "nearest_expert_is_own": nearest_share(bed),
        "threshold": round(_router(bed.bank).threshold, 4),
        "prompts_counted_as_known": known_share(bed),
    }
    if all(kind in bed.bank.names for kind in KINDS):
        found["mixed_documents"] = mixed(bed)
    if full:
        found["nll"]["sentences of SmolLM2"] = by_sentences(bed)
    return found


def off_oracle(bed: CollectionBed, arm: str) -> float:
    """Return the mean distance of an arm from the oracle over held-in tasks and seeds."""
    mine, oracle = bed.by_task(arm, held_in=True), bed.by_task("oracle", held_in=True)
    away = [abs(a - b) for task in mine for a, b in zip(mine[task], oracle[task], strict=True)]
    return sum(away) / len(away)


def nearest_share(bed: CollectionBed) -> dict[str, float]:
    """Return the share of held-in prompts whose nearest expert is their own, by task and of all."""
    found = {}
    for task in bed.tasks(held_in=True):
        gamma_NE = _router(bed.bank).affinities(_embedded(bed, task))
        own = bed.bank.names.index(task.name)
        found[task.name] = float((gamma_NE.argmax(-1) == own).float().mean())
    return {name: round(share, 3) for name, share in (*found.items(), ("all", _mean(found)))}


def known_share(bed: CollectionBed) -> dict[str, float]:
    """Return the share of prompts that lambda is large for, by kind of task."""
    router = _router(bed.bank)
    found = {}
    for kind in ("held_in", "held_out"):
        shares = {
            task.name: float((router.affinities(_embedded(bed, task)).amax(-1) > router.threshold)
                             .float().mean())
            for task in bed.tasks(held_in=kind == "held_in")
        }  # fmt: skip
        found[kind] = round(_mean(shares), 3)
    return found


def mixed(bed: CollectionBed) -> dict[str, Any]:
    """Return what documents of two kinds count as, and cost."""
    batch, texts = documents(bed, _DOCUMENTS)
    router = _router(bed.bank)
    largest_N = router.affinities(embed(texts)).amax(-1)
    return {
        "largest_cosine": rounded(largest_N),
        "counted_as_known": int((largest_N > router.threshold).sum()),
        "nll": {
            arm: round(float(nll_B(bed, batch, arm, texts).mean()), 4) for arm in (LOCAL, NAME)
        },
    }


def by_sentences(bed: CollectionBed) -> dict[str, Any]:
    """Return the means with one written sentence a task on both sides, and the sentences.

    The expert's sentence is written from the first three training rows, the query's from the next.
    """
    write = SmolLM2Instructions(model=bed.model)
    experts = {task.name: write(_examples(task, 0)) for task in bed.tasks(held_in=True)}
    written = AdapterBank(bed.bank.experts())
    embed_experts(
        written,
        {name: [experts[name]] for name in written.names},
        instructions=experts,
    )
    told = CollectionBed(rows=bed.rows, bank=written, model=bed.model)
    queries = {
        task.name: write(_examples(task, SHOWN))
        for held_in in (True, False)
        for task in bed.tasks(held_in=held_in)
    }

    def query(task: Task, rows: Sequence[Row]) -> Tensor:
        return embed([queries[task.name]]).expand(len(rows), -1)

    how = {"queries": query, "name": "by sentences"}
    return {
        "held_in": rounded(told.means(NAME, held_in=True, **how)),
        "held_out": rounded(told.means(NAME, held_in=False, **how)),
        "experts": experts,
        "queries": queries,
    }


def _examples(task: Task, start: int) -> list[Example]:
    rows = task.rows["train"][start : start + SHOWN]
    return [Example(prompt=row.prompt, answer=row.answer) for row in rows]


def _router(bank: AdapterBank) -> Glider:
    router = Glider()
    router.prepare(bank)
    return router


def _embedded(bed: CollectionBed, task: Task) -> Tensor:
    by_seed = draw_rows(bed.tokenizer, task, rows=bed.rows, seeds=SEEDS)
    return embed([row.prompt for rows in by_seed.values() for row in rows])


def _mean(shares: dict[str, float]) -> float:
    return sum(shares.values()) / len(shares)


def _above(value: float | None, limit: float) -> bool:
    return value is not None and value > limit
