"""The arena of adapters: one bank of experts, every router over it, held-in or held-out tasks.

A cell is one router on one seed's test rows of all tasks. Routers bring what they learnt, or are
taught once for all cells (``teach``), or are refused. Base model and experts are loaded once a
process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_models import BaseModel, load_base
from crossroads.adapters.choice import SAVED
from crossroads.adapters.collection.batches import fitting
from crossroads.adapters.collection.evaluation import Spent, evaluate
from crossroads.adapters.collection.tasks import Task, get_task, task_names
from crossroads.adapters.comparing import BASE, ORACLE, UNIFORM, Side
from crossroads.adapters.fingerprints import base_fingerprint, code_fingerprint
from crossroads.adapters.layout import load_bank
from crossroads.adapters.learning import must_learn
from crossroads.adapters.measuring import Arm, Teaching, measure_router
from crossroads.adapters.needs import GROUPS
from crossroads.adapters.routers import build_router, router_class
from crossroads.core.arena import Cell, Leaderboard, Metric
from crossroads.core.errors import UsageError
from crossroads.core.fingerprints import hash_of_modules
from crossroads.models.embedding_cache import cache_folder

if TYPE_CHECKING:
    from crossroads.core.report import Plot

LOSS = Metric(
    name="nll",
    title="Loss",
    unit="nats",
    higher_is_better=False,
    help="Negative log-likelihood per answer token, mean over tasks.",
)
COMMON: tuple[Metric, ...] = (
    Metric(
        name="accuracy",
        title="Accuracy",
        help="Share of rows whose answer is the likeliest option, mean over tasks that have some.",
    ),
    Metric(
        name="speed",
        title="Speed",
        help="Prompt tokens a second, as a ratio to the base model's, measured in turns.",
    ),
    Metric(
        name="tokens_per_s",
        title="Prompt tokens/s",
        unit="1/s",
        digits=0,
        headline=False,
        help="On this machine, one thread.",
    ),
    Metric(
        name="decode_tokens_per_s",
        title="Answer tokens/s",
        unit="1/s",
        digits=1,
        headline=False,
        help="One by one, with the cache, on this machine, one thread.",
    ),
    Metric(
        name="parameters",
        title="Routing's numbers",
        digits=0,
        higher_is_better=False,
        help="Of the router, and of the side data of the experts that it reads.",
    ),
    Metric(
        name="held_mib",
        title="Held",
        unit="MiB",
        digits=1,
        higher_is_better=False,
        help="Beside the base model: experts, side data, and copies of weights they are merged in.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class AdaptersTask:
    """One bank on one side of its tasks; satisfies ``crossroads.core.arena.Task``.

    Parameters
    ----------
    folder : of the bank
    side : tasks that an expert is named after, or those that none was trained on
    model : folder of the base model; None = SmolLM2-135M-Instruct
    rows : test rows of every task and seed
    tasks : names; None = all of the side
    teach : steps of routers that have to learn, 0 = each router's own; None = they are refused
    """

    folder: Path
    side: Side
    model: Path | None = None
    rows: int = 8
    tasks: tuple[str, ...] | None = None
    teach: int | None = None
    family: str = "adapters"
    evidence: str = "measured here"
    remarks: Sequence[str] = field(default=())

    @property
    def name(self) -> str:
        return self.side.replace("_", "-")

    @property
    def baselines(self) -> Sequence[str]:
        """The base model and the uniform mix; held in also the oracle, which is a bound."""
        return (BASE, UNIFORM, ORACLE) if self.side == "held_in" else (BASE, UNIFORM)

    @property
    def metrics(self) -> Sequence[Metric]:
        by_task = tuple(
            Metric(
                name=f"nll {name}",
                title=name,
                unit="nats",
                higher_is_better=False,
                headline=False,
                help=get_task(name).about,
            )
            for name in self.task_names
        )
        return (LOSS, *COMMON, *by_task)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks. Raises UsageError where there are none on this side."""
        experts = _bank(self.folder).names
        mine = (
            [name for name in task_names() if name in experts]
            if self.side == "held_in"
            else [name for name in task_names(held_in=False) if name not in experts]
        )
        if not mine:
            raise UsageError(
                f"{self.folder}: there is no {self.name} task: the collection's are held in where "
                "an expert has their name; compare your own rows with crossroads adapters compare "
                "--rows-file"
            )
        if self.tasks is not None:
            for name in self.tasks:
                if name not in mine:
                    known = ", ".join(mine)
                    raise UsageError(f"task {name!r} is not {self.name}; there is: {known}")
            return self.tasks
        return tuple(mine)

    def loaded(self) -> list[Task]:
        """Return the tasks with their rows."""
        return [get_task(name) for name in self.task_names]

    @property
    def description(self) -> str:
        bank = _bank(self.folder)
        return (
            f"{bank.n_experts} LoRA experts on {_base(self.model).name}; {len(self.task_names)} "
            f"{self.name} tasks, at most {self._test_rows} of each"
        )

    @property
    def notes(self) -> Sequence[str]:
        return (
            "routers differ in what they must be given: those of different groups are no rivals",
            *self._repeated(),
            *self.remarks,
        )

    @property
    def _test_rows(self) -> str:
        return f"{self.rows} test row{'' if self.rows == 1 else 's'}"

    def _repeated(self) -> Sequence[str]:
        """Say of which tasks every seed scores the same rows."""
        words = _base(self.model).tokenizer
        few = [t.name for t in self.loaded() if len(fitting(words, t, "test")) <= self.rows]
        if not few:
            return ()
        return (
            f"no more than {self._test_rows}, so that every seed scores the same ones and they "
            f"add nothing to an interval: {', '.join(few)}; ask for fewer rows",
        )

    @property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(f"{self.rows} {torch.__version__}".encode(), digest_size=10)
        for name in self.task_names:
            task = get_task(name)
            told = f"{name} {task.fingerprint('test')} {task.fingerprint('validation')}"
            digest.update(told.encode())
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(self.folder).as_posix().encode())
                digest.update(path.read_bytes())
        digest.update(_hash_of_base(_base(self.model)).encode())
        return digest.hexdigest()

    def identify(self, router: str) -> str:
        """Return the router with a digest of this room's code, and of its own from elsewhere.

        And of the rows it is taught with, where it is taught. Raises UsageError for an unknown one.
        """
        if router in {BASE, SAVED}:
            return f"{router} {code_fingerprint()}"
        build_router(router)
        own = hash_of_modules([router_class(router.split(":", 1)[0])])
        return f"{router} {code_fingerprint()} {own}{self._lessons_of(router)}"

    def _lessons_of(self, router: str) -> str:
        """Return the steps and a digest of the rows a router is taught with, nothing if it is not.

        The lessons' rows, and of a router that learns by task those of the measured ones, too.
        """
        if self.lessons is None or not must_learn(router):
            return ""
        by_task = router_class(router.split(":", 1)[0]).by_task
        tasks = [*self.lessons, *(self.loaded() if by_task else ())]
        told = repr([(task.name, task.fingerprint("train")) for task in tasks])
        return f" taught {self.teach} {hashlib.blake2b(told.encode(), digest_size=8).hexdigest()}"

    def run(self, router: str, seed: int) -> Cell:
        """Measure one router on the rows of one seed."""
        base, tasks = _base(self.model), self.loaded()
        arm = self._arm(router, seed, base, tasks)
        rights = [score.accuracy for score in arm.scores if score.accuracy is not None]
        metrics = {
            "nll": fmean(score.nll for score in arm.scores),
            **({"accuracy": fmean(rights)} if rights else {}),
            **{f"nll {score.task}": score.nll for score in arm.scores},
            "parameters": float(arm.parameters),
            "held_mib": arm.held_bytes / 2**20,
        }
        if arm.speed is not None:
            if arm.speed.prefill_ratio is not None:
                metrics["speed"] = arm.speed.prefill_ratio
            metrics["tokens_per_s"] = arm.speed.prefill
            metrics["decode_tokens_per_s"] = arm.speed.decode
        notes: dict[str, Any] = {
            "told": GROUPS[arm.group] + self._taught(router),
            "group": arm.group,
            "axes": arm.axes,
            "hindsight": router == ORACLE,
        }
        return Cell(
            metrics=metrics,
            fit_seconds=arm.prepare_seconds,
            decide_seconds=arm.score_seconds / arm.scored_rows if arm.scored_rows else None,
            notes=notes,
        )

    def _taught(self, router: str) -> str:
        """Say that a router learnt here, and how long."""
        if self.teach is None or router == BASE or not must_learn(router):
            return ""
        return f"; taught here, {self.teach or router_class(router.split(':', 1)[0]).learns} steps"

    def plots(self, board: Leaderboard) -> Sequence[Plot]:
        """Return the plots of the report."""
        from crossroads.adapters.plots import adapter_plots

        return adapter_plots(board, self.task_names)

    def _arm(self, router: str, seed: int, base: BaseModel, tasks: Sequence[Task]) -> Arm:
        cache = cache_folder() / "adapters" / f"arena-{code_fingerprint()}-{self.fingerprint}"
        if router == BASE:
            spent = Spent()
            scores = evaluate(
                base.model, base.tokenizer, tasks,
                arm=BASE, rows=self.rows, seeds=(seed,), cache=cache, spent=spent,
            )  # fmt: skip
            return Arm(
                router=BASE, group="reference", scores=tuple(scores),
                score_seconds=spent.scoring, scored_rows=spent.rows,
            )  # fmt: skip
        return measure_router(
            router, base, _bank(self.folder), tasks,
            rows=self.rows, seeds=(seed,), folder=self.folder, cache=cache,
            teaching=self._teaching(),
        )  # fmt: skip

    @property
    def lessons(self) -> tuple[Task, ...] | None:
        """The tasks whose training rows routers learn from: those that experts are named after.

        For both sides of the arena, so that no router sees tasks held out before they are measured.
        None: they are not taught.
        """
        if self.teach is None:
            return None
        experts = _bank(self.folder).names
        return tuple(get_task(name) for name in task_names() if name in experts)

    def _teaching(self) -> Teaching | None:
        if self.lessons is None:
            return None
        return Teaching(
            tasks=self.lessons,
            folder=cache_folder() / "adapters" / "learnt",
            steps=self.teach or None,
        )


@cache
def _base(model: Path | None) -> BaseModel:
    return load_base(model)


_hash_of_base = lru_cache(maxsize=1)(base_fingerprint)  # asked for by every cell


@cache
def _bank(folder: Path) -> AdapterBank:
    return load_bank(folder)
