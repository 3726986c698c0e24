"""Routers that have to learn: taught once on rows of tasks, kept on disk, used as any other.

What a router learns, and how, stands in its own ``learn``. Here it is given the rows, found again
where it has learnt them before, and a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_models import BaseModel
from crossroads.adapters.choice import SAVED
from crossroads.adapters.collection.tasks import Task
from crossroads.adapters.contract import Router
from crossroads.adapters.fingerprints import model_fingerprint
from crossroads.adapters.joint import train_jointly
from crossroads.adapters.layout import has_router, load_bank, load_router, save_bank
from crossroads.adapters.lessons import Lesson
from crossroads.adapters.routers import build_router, router_class
from crossroads.adapters.skills import train_skills
from crossroads.adapters.task_level.training import train_tasks
from crossroads.adapters.training import train
from crossroads.core.errors import UsageError
from crossroads.core.fingerprints import hash_of_modules
from crossroads.core.progress import Progress

_CHECKPOINT = "learning.pt"
_TEACHERS = (Lesson, train, train_jointly, train_skills, train_tasks)


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

    Parameters
    ----------
    spec : as users write it, such as "x-lora:temperature=0.5"
    bank : finished experts; it stays as it is
    tasks : with training rows; a router by task numbers them in this order
    steps : None = the router's own
    checkpoint : file of a run that was stopped

    Raises UsageError for a router that has nothing to learn, InputError where a task has no
    training rows, and what ``training.train`` raises.
    """
    router = build_router(spec)
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
) -> tuple[AdapterBank, Router]:
    """Do as ``learn``, once: what was learnt is kept below ``folder``, by all it depends on."""
    count = router_class(spec.split(":", 1)[0]).learns if steps is None else steps
    own = folder / _key(spec, base, bank, tasks, steps=count, seed=seed)
    if not has_router(own / "bank"):
        checkpoint = own / _CHECKPOINT
        made, router = learn(
            spec, base, bank, tasks,
            steps=count, seed=seed, checkpoint=checkpoint, progress=progress,
        )  # fmt: skip
        save_bank(own / "bank", made, router, overwrite=True)
        checkpoint.unlink(missing_ok=True)
    made = load_bank(own / "bank", model=base.model)
    return made, load_router(own / "bank", made)


def _key(
    spec: str, base: BaseModel, bank: AdapterBank, tasks: Sequence[Task], *, steps: int, seed: int
) -> str:
    """Return a hash of the router, its code and its trainers', the model, experts, rows, steps."""
    digest = hashlib.blake2b(digest_size=10)
    digest.update(hash_of_modules([router_class(spec.split(":", 1)[0]), *_TEACHERS]).encode())
    told = [spec, steps, seed, model_fingerprint(base.model), bank.names, tuple(bank.layers)]
    digest.update(repr((told, [(t.name, t.fingerprint("train")) for t in tasks])).encode())
    for values in bank.parameters():
        digest.update(values.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
