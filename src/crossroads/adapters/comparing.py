"""Several routers over the same adapters: same prompts, same seeds, one table a group of equals.

Figures of a router are means over tasks, every task counting the same. Held in are the tasks that
an adapter of the bank was trained on, held out the others. Routers that need data which others do
without stand in groups of their own, see ``crossroads.adapters.needs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from crossroads import __version__
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_models import BaseModel
from crossroads.adapters.choice import SAVED, choose_router
from crossroads.adapters.collection.evaluation import draw_rows, evaluate
from crossroads.adapters.collection.rows import Row
from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.contract import Router
from crossroads.adapters.learning import must_learn
from crossroads.adapters.measuring import (
    BEST_SINGLE,
    Arm,
    measure_router,
    validation_of,
)
from crossroads.adapters.needs import GROUPS, Group, group_of
from crossroads.adapters.routers import router_class, router_names
from crossroads.core.errors import CrossroadsError, UsageError, unknown_name
from crossroads.core.progress import Progress
from crossroads.core.provenance import machine
from crossroads.core.statistics import Summary, summarise

BASE, UNIFORM, ORACLE = "base", "uniform", "oracle"
Side = Literal["held_in", "held_out"]
SIDES: tuple[Side, ...] = ("held_in", "held_out")
_BY_TASK = (
    "is told the task of every prompt by a number that only its training gave, and knows none of "
    "the tasks held out; crossroads adapters teach makes a folder whose router is 'saved'"
)
_NO_LESSONS = (
    "has to learn from training rows of the experts' tasks, and no adapter is named after a task "
    "of the collection"
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All arms on the same rows.

    Attributes
    ----------
    rows : test rows of every task and seed, at most
    drawn : the same by task, fewer than ``rows`` where the task has no more
    repeated : tasks of which every seed scores the same rows; a mean over such tasks alone has no
        interval, which would be of width 0 and say nothing
    """

    model: str
    experts: tuple[str, ...]
    tasks: tuple[Task, ...]
    rows: int
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    drawn: Mapping[str, int] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, router: str) -> Arm:
        for arm in self.arms:
            if arm.router == router:
                return arm
        raise unknown_name("router", router, [arm.router for arm in self.arms])

    def side(self, task: str) -> Side:
        return "held_in" if task in self.experts else "held_out"

    def mean(self, arm: Arm, side: Side, figure: str = "nll") -> Summary | None:
        """Return an arm's mean over the tasks of a side, by seed; None where there is no figure."""
        per_seed, tasks = [], set[str]()
        for seed in self.seeds:
            found = {
                score.task: getattr(score, figure)
                for score in arm.scores
                if score.seed == seed and self.side(score.task) == side
            }
            known = {task: value for task, value in found.items() if value is not None}
            if not known:
                return None
            per_seed.append(fmean(known.values()))
            tasks.update(known)
        return self._summary(per_seed, tasks)

    def closed(self, arm: Arm) -> Summary | None:
        """Return the share of the held-in way from uniform to oracle that an arm goes, by seed.

        None without the three of them, or where the oracle is not better than uniform.
        """
        if not {UNIFORM, ORACLE} <= {one.router for one in self.arms}:
            return None
        worse, better = self[UNIFORM], self[ORACLE]
        ends = [self.mean(one, "held_in") for one in (worse, better, arm)]
        shares = []
        for low, high, own in zip(*(end.per_seed if end else () for end in ends), strict=False):
            if low is None or high is None or own is None or low <= high:
                return None
            shares.append((low - own) / (low - high))
        mine = {score.task for score in arm.scores if self.side(score.task) == "held_in"}
        return self._summary(shares, mine) if shares else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know."""
        return (*self._repeated(), *self._without_gap())

    def _repeated(self) -> tuple[str, ...]:
        if not self.repeated:
            return ()
        names = [task.name for task in self.tasks if task.name in self.repeated]
        is_all = len(names) == len(self.tasks)
        whose = "of every task" if is_all else f"of {', '.join(names)}"
        return (
            f"all seeds score the same rows {whose}: "
            + ("there is no interval" if is_all else "they add nothing to an interval")
            + "; ask for fewer rows, or give more of them",
        )

    def _without_gap(self) -> tuple[str, ...]:
        """Say why nobody closes a share of the gap, where all three of it were measured."""
        ends = [one for one in self.arms if one.router in {UNIFORM, ORACLE} and one.error is None]
        known = [one for one in ends if self.mean(one, "held_in") is not None]
        if len(known) < 2 or self.closed(self[ORACLE]) is not None:
            return ()
        return (
            "there is no gap to close: for a seed or more, the oracle's loss held in is not below "
            "the uniform mix's",
        )

    def _summary(self, values: Sequence[float | None], tasks: Iterable[str]) -> Summary:
        """Return the mean over seeds; without an interval where their rows are all the same."""
        found = summarise(values)
        return replace(found, low=None, high=None) if self.repeated.issuperset(tasks) else found

    def ranked(self, group: Group) -> list[Arm]:
        """Return a group's arms, the lowest held-in loss first (held-out, where nothing is in)."""

        def loss(arm: Arm) -> tuple[bool, float, str]:
            found = self.mean(arm, "held_in") or self.mean(arm, "held_out")
            value = None if found is None else found.mean
            return value is None, value or 0.0, arm.router

        return sorted((arm for arm in self.arms if arm.group == group), key=loss)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; the schema stands in the help of ``crossroads adapters compare``."""
        return {
            "model": self.model,
            "experts": list(self.experts),
            "tasks": [
                {
                    "name": t.name,
                    "side": self.side(t.name),
                    "rows": self.drawn.get(t.name),
                    "same_rows": t.name in self.repeated,
                }
                for t in self.tasks
            ],
            "rows": self.rows,
            "seeds": list(self.seeds),
            "groups": [
                {"group": group, "about": about, "arms": [self._arm(a) for a in found]}
                for group, about in GROUPS.items()
                if (found := self.ranked(group))
            ],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "threads": torch.get_num_threads(),
            "machine": machine(("crossroads", "torch", "transformers")),
            "version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _arm(self, arm: Arm) -> dict[str, Any]:
        figures: dict[str, Any] = {
            side: {name: _plain(self.mean(arm, side, name)) for name in ("nll", "accuracy")}
            for side in SIDES
        }
        by_task: dict[str, dict[str, Any]] = {}
        for task in dict.fromkeys(score.task for score in arm.scores):
            mine = [score for score in arm.scores if score.task == task]
            by_task[task] = {
                name: _plain(self._of_task(task, [getattr(score, name) for score in mine]))
                for name in ("nll", "accuracy")
            }
        speed = arm.speed
        return {
            "router": arm.router,
            "settings": dict(arm.settings),
            "needs": list(arm.needs),
            "axes": arm.axes and dict(arm.axes),
            **figures,
            "gap_closed": _plain(self.closed(arm)),
            "tasks": by_task,
            "parameters": arm.parameters,
            "held_bytes": arm.held_bytes,
            "prepare_seconds": arm.prepare_seconds,
            "tokens_per_s": speed and speed.prefill,
            "decode_tokens_per_s": speed and speed.decode,
            "speed_ratio": speed and speed.prefill_ratio,
            "error": arm.error,
        }

    def _of_task(self, task: str, values: Sequence[float | None]) -> Summary | None:
        return None if any(value is None for value in values) else self._summary(values, [task])


def candidates(
    bank: AdapterBank,
    folder: Path | None = None,
    tasks: Sequence[Task] = (),
    *,
    lessons: Sequence[Task] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Return the routers that there is all data for, and why the others were left out.

    ``lessons`` are the tasks whose training rows those that have to learn will be taught; None:
    they will not. Those that learn by task take each task's own.
    """
    found, left_out = [], dict[str, str]()
    for name in sorted(router_names()):
        try:
            if why := router_class(name).no_rival:
                left_out[name] = why
                continue
            if lessons is not None and must_learn(name):
                if lessons or router_class(name).by_task:
                    found.append(name)
                else:
                    left_out[name] = _NO_LESSONS
                continue
            if "task_ids_B" in router_class(name).call_data:
                left_out[name] = _BY_TASK
                continue
            if name != BEST_SINGLE or not validation_of(tasks, bank):
                choose_router(name, bank, folder)
            found.append(name)
        except CrossroadsError as error:
            left_out[name] = str(error)
    return found, left_out


def grouped(left_out: Mapping[str, str]) -> list[str]:
    """Return a line for every reason, with all routers that were left out for it.

    >>> grouped({"a": "router a: has no gates", "b": "told", "c": "router c: has no gates"})
    ['left out a, c: has no gates', 'left out b: told']
    """
    names: dict[str, list[str]] = {}
    for name, why in left_out.items():
        names.setdefault(why.removeprefix(f"router {name}: "), []).append(name)
    return [f"left out {', '.join(of)}: {why}" for why, of in names.items()]


def compare(
    base: BaseModel,
    bank: AdapterBank,
    routers: Iterable[str],
    tasks: Sequence[Task],
    *,
    rows: int,
    seeds: Sequence[int] = (0, 1, 2),
    folder: Path | None = None,
    cache: Path | None = None,
    left_out: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure routers, and always the base model, the uniform mix and the oracle beside them.

    A router that raises a CrossroadsError becomes an arm with ``error``. Raises UsageError for an
    unknown router, before anything is measured.

    Parameters
    ----------
    routers : as users write them; "saved" is the one in ``folder``
    rows : test rows of every task and seed, the same for all routers
    folder : the bank was read from
    cache : folder of scores by row, so that a comparison that was stopped goes on
    left_out : routers that are not compared, and why; only handed on
    """
    known = {*bank.names}
    bounds = [ORACLE] if any(task.name in known for task in tasks) else []
    names = list(dict.fromkeys([BASE, UNIFORM, *bounds, *routers]))
    for name in names:
        if name not in {BASE, SAVED}:
            router_class(name.split(":", 1)[0])
    if not tasks:
        raise UsageError("compare: no tasks; give at least one")

    drawn = {t.name: draw_rows(base.tokenizer, t, rows=rows, seeds=seeds) for t in tasks}
    arms = []
    for place, name in enumerate(names):

        def moved(done: int, whole: int, place: int = place) -> None:
            if progress is not None:
                progress(place * whole + done, len(names) * whole)

        arms.append(
            _arm_of(
                name, base, bank, tasks,
                rows=rows, seeds=seeds, folder=folder, cache=cache, progress=moved,
            )
        )  # fmt: skip
    return Comparison(
        model=base.name,
        experts=bank.names,
        tasks=tuple(tasks),
        rows=rows,
        seeds=tuple(seeds),
        arms=tuple(arms),
        drawn={task: len(by_seed[seeds[0]]) for task, by_seed in drawn.items()},
        repeated=frozenset(task for task, by_seed in drawn.items() if _are_same(by_seed)),
        left_out=left_out or {},
    )


def _are_same(by_seed: Mapping[int, Sequence[Row]]) -> bool:
    """Return whether several seeds drew one set of rows, as of a task that has no more."""
    return len(by_seed) > 1 and len({frozenset(rows) for rows in by_seed.values()}) == 1


def _arm_of(
    name: str,
    base: BaseModel,
    bank: AdapterBank,
    tasks: Sequence[Task],
    *,
    rows: int,
    seeds: Sequence[int],
    folder: Path | None,
    cache: Path | None,
    progress: Progress,
) -> Arm:
    if name == BASE:
        scores = evaluate(
            base.model, base.tokenizer, tasks,
            arm=f"{BASE} {base.name}", rows=rows, seeds=seeds, cache=cache, progress=progress,
        )  # fmt: skip
        return Arm(router=BASE, group="reference", scores=tuple(scores))
    try:
        return measure_router(
            name, base, bank, tasks,
            rows=rows, seeds=seeds, folder=folder, cache=cache, progress=progress,
        )  # fmt: skip
    except CrossroadsError as error:
        cls = router_class(name.split(":", 1)[0]) if name != SAVED else Router
        return Arm(router=name, group=group_of(cls), error=str(error))


def _plain(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else summary.to_dict()
