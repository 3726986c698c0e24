"""Routers as arms of one comparison: same bank, same rows, each told what it asks for.

``share_closed`` puts an arm between two others: 0 at the worse, 1 at the better one. The levels of
the collection are such shares between the uniform mix and each task's own expert.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.collection.evaluation import ROWS, SEEDS, Spent, TaskScore, evaluate
from crossroads.adapters.collection.rows import Row
from crossroads.adapters.collection.scoring import Facts
from crossroads.adapters.collection.tasks import Task, task_names
from crossroads.adapters.contract import Router
from crossroads.adapters.embedding import embed
from crossroads.adapters.insertion import RoutedModel
from crossroads.core.errors import InputError
from crossroads.core.progress import Progress


def measure(
    model: nn.Module,
    tokenizer: Any,
    bank: AdapterBank,
    router: Router,
    tasks: Sequence[Task],
    *,
    rows: int = ROWS,
    seeds: Sequence[int] = SEEDS,
    encoder: str | None = None,
    numbers: Mapping[str, int] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> list[TaskScore]:
    """Return the scores of a router over a bank; see ``evaluation.evaluate``.

    Parameters
    ----------
    model : base model; it is given back as it was
    router : is told of each row what it asks for: the task's own expert (the base model for tasks
        without one), the task's number (-1 for those that no router knows, and then also the
        embedding of the prompt), the embedding of the prompt
    numbers : of tasks by name; None = places among those of the collection that are trained on
    encoder : of prompts, the one the bank's embeddings were made by
    """
    facts = {task.name: facts_of(router, bank, task, encoder, numbers) for task in tasks}
    started = time.perf_counter()
    routed = RoutedModel(model, bank, router)
    if spent is not None:
        spent.inserting += time.perf_counter() - started
    try:
        return evaluate(
            model,
            tokenizer,
            tasks,
            arm=arm_name(router, bank),
            rows=rows,
            seeds=seeds,
            facts=facts,
            cache=cache,
            progress=progress,
            spent=spent,
        )
    finally:
        routed.unwrap()


def facts_of(
    router: Router,
    bank: AdapterBank,
    task: Task,
    encoder: str | None = None,
    numbers: Mapping[str, int] | None = None,
) -> Facts:
    """Return what ``router`` asks to be told of rows of a task; see ``measure``."""
    own = task.name if task.name in bank.names else None
    place = -1 if own is None else bank.position(own)
    if numbers is None:
        numbers = {name: number for number, name in enumerate(task_names(held_in=True))}
    number = numbers.get(task.name, -1)
    is_unknown = "task_ids_B" in router.call_data and number < 0

    def facts(rows: Sequence[Row]) -> Mapping[str, Any]:
        told: dict[str, Any] = {}
        if "experts" in router.call_data:
            told["experts"] = [own] * len(rows)
        if "labels_B" in router.call_data:
            told["labels"] = torch.full((len(rows),), place)
        if "task_ids_B" in router.call_data:
            told["task_ids"] = torch.full((len(rows),), number)
        if "embedding_BG" in router.call_data or is_unknown:
            told["embedding"] = embed([row.prompt for row in rows], encoder)
        return told

    return facts


def arm_name(router: Router, bank: AdapterBank) -> str:
    """Return the router's name and a hash of all it depends on: settings, what it learnt, experts.

    Side data of the experts count where the router reads them.
    """
    digest = hashlib.blake2b(digest_size=12)
    digest.update(json.dumps(dict(router.settings()), sort_keys=True, default=str).encode())
    digest.update("\n".join((*bank.names, *bank.layers)).encode())
    known = {
        name: values
        for name, values in bank.state_dict().items()
        if "artifacts" not in name.split(".") or name.rpartition(".")[2] in router.artifacts
    }
    for values in (*router.state_dict().values(), *known.values(), *_vectors(bank)):
        digest.update(values.detach().float().contiguous().numpy().tobytes())
    return f"{router.name} {digest.hexdigest()}"


def _vectors(bank: AdapterBank) -> list[Tensor]:
    found = [vector for card in bank.cards for vector in (card.embedding_G, card.examples_JG)]
    return [vector for vector in found if vector is not None]


def mean_nll(scores: Sequence[TaskScore]) -> dict[int, float]:
    """Return the mean over tasks of the loss per token, by seed: every task counts the same."""
    by_seed: dict[int, list[float]] = {}
    for score in scores:
        by_seed.setdefault(score.seed, []).append(score.nll)
    return {seed: fmean(losses) for seed, losses in by_seed.items()}


def share_closed(
    arm: Sequence[TaskScore], *, worse: Sequence[TaskScore], better: Sequence[TaskScore]
) -> dict[int, float]:
    """Return (worse - arm) / (worse - better) of the mean losses, by seed.

    Raises InputError where the three were not measured on the same tasks and seeds, or where
    ``better`` is not better.
    """
    if (
        not {(s.task, s.seed) for s in arm}
        == {(s.task, s.seed) for s in worse}
        == {(s.task, s.seed) for s in better}
    ):
        raise InputError("share closed: the arms were measured on different tasks or seeds")
    low, high, at = mean_nll(better), mean_nll(worse), mean_nll(arm)
    for seed in at:
        if not high[seed] > low[seed]:
            raise InputError(
                f"share closed: on seed {seed} the better arm loses {low[seed]:.4f}, the worse "
                f"{high[seed]:.4f}; there is no gap to close"
            )
    return {seed: (high[seed] - at[seed]) / (high[seed] - low[seed]) for seed in at}
