"""What one router does over a bank of adapters: its scores, its speed, what it holds and needs."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_models import BaseModel
from crossroads.adapters.choice import choose_router
from crossroads.adapters.collection.arms import measure
from crossroads.adapters.collection.evaluation import Spent, TaskScore
from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.contract import Router
from crossroads.adapters.fingerprints import (
    bank_fingerprint,
    base_fingerprint,
)
from crossroads.adapters.footprint import Speed, held_bytes, measure_speed, router_parameters
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.learning import learnt, must_learn
from crossroads.adapters.needs import Group, group_of, needs_of
from crossroads.adapters.routers import router_class
from crossroads.adapters.routers.best_single import BestSingle, best_of
from crossroads.core.errors import UsageError
from crossroads.core.files import write_atomically
from crossroads.core.progress import Progress, progress_bar

BEST_SINGLE = "best-single"  # its expert is chosen here where none is named
_VALIDATION_ROWS = 4  # of every task, by which the best expert is chosen


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one router did.

    Attributes
    ----------
    router, kind : as it was named, "base" is the model without adapters; a saved one's own name
    group, needs : see ``crossroads.adapters.needs``
    axes : the survey's nine, None where it declares none
    scores : by task and seed
    parameters, held_bytes : numbers of routing alone; bytes beside the base model, adapters and all
    prepare_seconds : from adapters to a routed model; with what it took to learn, or to choose the
        best expert, at any time
    score_seconds, scored_rows : of rows that were scored, not those kept from an earlier time
    error : why there are no figures
    """

    router: str
    group: Group = "adapters"
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, str] | None = None
    scores: tuple[TaskScore, ...] = ()
    parameters: int = 0
    held_bytes: int = 0
    prepare_seconds: float = 0.0
    score_seconds: float = 0.0
    scored_rows: int = 0
    speed: Speed | None = None
    error: str | None = None
    kind: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Teaching:
    """How routers that have to learn come by it.

    Attributes
    ----------
    tasks : whose training rows they are taught; those that learn by task take each measured one's
    folder : keeps what was learnt
    steps : None = each router's own
    """

    tasks: tuple[Task, ...]
    folder: Path
    steps: int | None = None

    @property
    def numbers(self) -> dict[str, int]:
        """The tasks' numbers, for routers that are told them."""
        return {task.name: number for number, task in enumerate(self.tasks)}


def measure_router(
    name: str,
    base: BaseModel,
    bank: AdapterBank,
    tasks: Sequence[Task],
    *,
    rows: int,
    seeds: Sequence[int],
    folder: Path | None = None,
    cache: Path | None = None,
    teaching: Teaching | None = None,
    progress: Progress | None = None,
) -> Arm:
    """Return what one router does; see ``compare``.

    Raises CrossroadsError where the bank lacks what it needs, or nobody trained it.
    """
    ways = _ways(name, base, bank, tasks, folder=folder, cache=cache, teaching=teaching)
    mine, own, router, prepared = next(ways)
    routed = RoutedModel(base.model, own, router)
    try:
        speed = measure_speed(base, routed)
        held, parameters = held_bytes(routed), router_parameters(routed)
    finally:
        routed.unwrap()
    scores: list[TaskScore] = []
    spent, preparing = Spent(), 0.0
    for some, its_bank, its_router, its_seconds in itertools.chain(
        [(mine, own, router, prepared)], ways
    ):
        preparing += its_seconds
        scores += measure(
            base.model, base.tokenizer, its_bank, its_router, some,
            rows=rows, seeds=seeds, cache=cache, progress=progress,
            numbers=teaching.numbers if teaching else None, spent=spent,
        )  # fmt: skip
    return Arm(
        router=name,
        group=group_of(router),
        needs=needs_of(router),
        settings=dict(router.settings()),
        axes=axes_of(router),
        scores=tuple(scores),
        parameters=parameters,
        held_bytes=held,
        prepare_seconds=preparing + spent.inserting,
        score_seconds=spent.scoring,
        scored_rows=spent.rows,
        speed=speed,
        kind=router.name,
    )


def _ways(
    name: str,
    base: BaseModel,
    bank: AdapterBank,
    tasks: Sequence[Task],
    *,
    folder: Path | None,
    cache: Path | None,
    teaching: Teaching | None,
) -> Iterator[tuple[Sequence[Task], AdapterBank, Router, float]]:
    """Yield tasks with the bank and the router for them, and the seconds it took to have these.

    All tasks, or one at a time where it learns so.
    """
    if teaching is None or not must_learn(name):
        chosen, seconds = name, 0.0
        if name == BEST_SINGLE:
            expert, seconds = _best_kept(base, bank, tasks, cache)
            chosen += f":expert={expert}"
        started = time.perf_counter()
        router = choose_router(chosen, bank, folder)
        yield tasks, bank, router, seconds + time.perf_counter() - started
        return
    is_by_task = router_class(name.split(":", 1)[0]).by_task
    for mine in [[task] for task in tasks] if is_by_task else [tasks]:
        lessons = mine if is_by_task else teaching.tasks
        with progress_bar(f"{name} learns {', '.join(task.name for task in lessons)}") as moved:
            made = learnt(
                name, base, bank, lessons, teaching.folder, steps=teaching.steps, progress=moved
            )
        yield mine, *made


def _best_kept(
    base: BaseModel, bank: AdapterBank, tasks: Sequence[Task], cache: Path | None
) -> tuple[str, float]:
    """Return the best expert and the seconds it took to choose it, now or at an earlier time."""
    told = [
        base_fingerprint(base),
        bank_fingerprint(bank),
        [(task.name, task.length, task.fingerprint("validation")) for task in tasks],
    ]
    key = hashlib.blake2b(repr(told).encode(), digest_size=10).hexdigest()
    file = None if cache is None else cache / f"{BEST_SINGLE}.{key}.json"
    if file is not None and file.is_file():
        kept = json.loads(file.read_text("utf-8"))
        return str(kept["expert"]), float(kept["seconds"])
    started = time.perf_counter()
    expert = best_expert(base, bank, tasks)
    seconds = time.perf_counter() - started
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"expert": expert, "seconds": seconds}) + "\n")
    return expert, seconds


def best_expert(base: BaseModel, bank: AdapterBank, tasks: Sequence[Task]) -> str:
    """Return the expert with the lowest mean loss on validation rows of the held-in tasks.

    Of all tasks where none is held in. Raises UsageError where they have no validation rows.
    """
    asked = validation_of(tasks, bank)
    if not asked:
        raise UsageError(
            f"router {BEST_SINGLE}: the tasks have no validation rows to choose an expert by; name "
            f"one, {BEST_SINGLE}:expert={bank.names[0]}"
        )
    losses = {}
    for name in bank.names:
        scores = measure(
            base.model, base.tokenizer, bank, BestSingle(expert=name), asked,
            rows=_VALIDATION_ROWS, seeds=(0,),
        )  # fmt: skip
        losses[name] = [score.nll for score in scores]
    return best_of(losses)


def validation_of(tasks: Sequence[Task], bank: AdapterBank) -> list[Task]:
    """Return the tasks to choose by, with their validation rows in the place of the test rows."""
    mine = [task for task in tasks if task.name in bank.names] or list(tasks)
    return [
        replace(task, rows={**task.rows, "test": task.rows["validation"]})
        for task in mine
        if task.rows["validation"]
    ]


def axes_of(router: Router) -> dict[str, str] | None:
    """Return the cells a router declares, as plain data."""
    return None if router.cells is None else router.cells.to_dict()
