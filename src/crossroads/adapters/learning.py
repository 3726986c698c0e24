"""Routers that have to learn: taught once on rows of tasks, kept on disk, used as any other.

What a router learns, and how, stands in its own ``learn``. Here it is given the rows, found again
where it has learnt them before, and a run of a trainer that was stopped goes on. Two processes that
want the same are taught once: the second waits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_models import BaseModel
from crossroads.adapters.choice import SAVED
from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.contract import Router
from crossroads.adapters.fingerprints import (
    bank_fingerprint,
    base_fingerprint,
    code_fingerprint,
)
from crossroads.adapters.layout import has_router, load_bank, load_router, save_bank
from crossroads.adapters.lessons import Lesson
from crossroads.adapters.routers import build_router, known_settings, router_class
from crossroads.core.errors import UsageError
from crossroads.core.files import check_writable, write_atomically
from crossroads.core.fingerprints import hash_of_modules
from crossroads.core.progress import Progress

_LOG = logging.getLogger(__name__)
_CHECKPOINT, _SECONDS, _LOCK = "learning.pt", "learning.json", "learning.lock"


class Learnt(NamedTuple):
    """A router that has learnt, the bank it works on, and how long it took to learn, in all."""

    bank: AdapterBank
    router: Router
    seconds: float


def must_learn(spec: str) -> bool:
    """Return whether a router, as users write it, has to learn; "saved" and "base" have not.

    Raises UsageError for an unknown router.
    """
    return spec not in {SAVED, "base"} and router_class(spec.split(":", 1)[0]).learns > 0


def learn(
    spec: str,
    base: BaseModel,
    bank: AdapterBank,
    tasks: Sequence[Task],
    *,
    steps: int | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> tuple[AdapterBank, Router]:
    """Return a router that has learnt the training rows of tasks, and the bank it works on.

    Raises UsageError for a router that has nothing to learn or no tasks to learn from, InputError
    where a task has no training rows, and what ``training.train`` raises.

    Parameters
    ----------
    spec : as users write it, such as "x-lora:temperature=0.5"
    bank : finished experts; it stays as it is
    tasks : with training rows; a router by task numbers them in this order
    steps : None = the router's own
    seed : of batches, of experts' first numbers and, unless ``spec`` says, of the router's own
    checkpoint : file of a run that was stopped
    """
    drawn = {"seed": seed} if "seed" in known_settings(router_class(spec.split(":", 1)[0])) else {}
    router = build_router(spec, **drawn)
    if not must_learn(spec):
        raise UsageError(f"router {router.name}: has nothing to learn; use it as it is")
    count = router.learns if steps is None else steps
    lesson = Lesson(
        model=base.model,
        tokenizer=base.tokenizer,
        bank=bank,
        tasks=tasks,
        steps=count,
        seed=seed,
        checkpoint=checkpoint,
        identity=_key(spec, base, bank, tasks, steps=count, seed=seed),
        progress=progress,
    )
    return router.learn(lesson), router


def learnt(
    spec: str,
    base: BaseModel,
    bank: AdapterBank,
    tasks: Sequence[Task],
    folder: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Learnt:
    """Do as ``learn``, once: what was learnt is kept below ``folder``, by all it depends on."""
    count = router_class(spec.split(":", 1)[0]).learns if steps is None else steps
    own = folder / _key(spec, base, bank, tasks, steps=count, seed=seed)
    run = partial(
        learn, spec, base, bank, tasks,
        steps=count, seed=seed, checkpoint=own / _CHECKPOINT, progress=progress,
    )  # fmt: skip
    if not has_router(own / "bank"):
        check_writable(own / _LOCK)
        with _alone(own / _LOCK):
            if not has_router(own / "bank"):  # nor did another process learn it in the meantime
                _learn_into(own, run)
    made = load_bank(own / "bank", model=base.model)
    return Learnt(made, load_router(own / "bank", made), _seconds(own))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock; say so where it has to be waited for, which may take an hour."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("another process learns the same (%s); waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _learn_into(own: Path, run: Callable[[], tuple[AdapterBank, Router]]) -> None:
    """Learn and keep it in a folder, with the seconds of all runs that this one continues."""
    checkpoint = own / _CHECKPOINT
    before = _seconds(own) if checkpoint.is_file() else 0.0
    started = time.perf_counter()
    try:
        made, router = run()
    finally:  # also where it is stopped
        spent = before + time.perf_counter() - started
        write_atomically(own / _SECONDS, json.dumps({"seconds": spent}) + "\n")
    save_bank(own / "bank", made, router, overwrite=True)
    checkpoint.unlink(missing_ok=True)


def _seconds(own: Path) -> float:
    try:
        return float(json.loads((own / _SECONDS).read_text("utf-8"))["seconds"])
    except FileNotFoundError:
        return 0.0


def _key(
    spec: str, base: BaseModel, bank: AdapterBank, tasks: Sequence[Task], *, steps: int, seed: int
) -> str:
    """Return a hash of all that decides what is learnt.

    The router, this room's code and its own from elsewhere, model, tokenizer, experts, rows, steps.
    """
    told = [
        spec,
        steps,
        seed,
        code_fingerprint(),
        hash_of_modules([router_class(spec.split(":", 1)[0])]),
        base_fingerprint(base),
        bank_fingerprint(bank),
        [(task.name, task.length, task.batch, task.fingerprint("train")) for task in tasks],
    ]
    return hashlib.blake2b(repr(told).encode(), digest_size=10).hexdigest()
