"""What post-hoc routers make of the shipped experts, on tasks with an expert and on tasks without.

Every arm answers the same test rows, three paired draws of them a task: the base model, the own
expert of the task, the uniform mix, PHATGOOSE and average activation. The levels are shares of the
gap between the uniform mix and the own experts, of the mean loss per answer token over the twelve
held-in tasks; the median over the draws decides. Scores are kept by row in ``--cache``: a run that
was stopped goes on, and one with more rows scores the new ones alone. Writes
``benchmarks/results/adapters-levels.json``.

    python benchmarks/adapters/levels.py [--rows 32] [--bank DIR] [--cache DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossroads.adapters.activations import record_activation
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.collection.arms import mean_nll, measure, share_closed
from crossroads.adapters.collection.batches import training_batches
from crossroads.adapters.collection.evaluation import SEEDS, TaskScore, evaluate
from crossroads.adapters.collection.recipe import BASE_MODEL
from crossroads.adapters.collection.shipped import (
    MANIFEST,
    check_files,
    read_manifest,
    shipped_folder,
)
from crossroads.adapters.collection.tasks import Task, get_task, tasks
from crossroads.adapters.layout import load_bank
from crossroads.adapters.routers import build_router
from crossroads.core.files import write_atomically
from crossroads.core.progress import progress_bar
from crossroads.core.provenance import machine
from crossroads.models.embedding_cache import cache_folder
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer

RESULT = Path(__file__).parents[1] / "results" / "adapters-levels.json"
BASE, ORACLE, UNIFORM = "base", "oracle", "uniform"
ROUTERS = {
    ORACLE: "oracle",
    UNIFORM: "uniform",
    "phatgoose top-2": "phatgoose:k=2",
    "phatgoose top-1": "phatgoose:k=1",
    "average activation top-2": "average-activation:k=2",
}
LEVELS = {"phatgoose top-2": 0.70, "average activation top-2": 0.50}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--bank", type=Path, default=None)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--only", choices=[BASE, *ROUTERS], default=None)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    cache = options.cache or cache_folder() / "adapters" / "scores"
    wanted = [options.only] if options.only else [BASE, *ROUTERS]
    model, tokenizer, every = load_smollm2(), smollm2_tokenizer(), tasks()
    folder = None if wanted == [BASE] else options.bank or shipped_folder()
    bank = None
    if folder is not None:
        check_files(folder)
        steps = read_manifest(folder)["recipe"]["steps"]
        bank = with_activations(model, tokenizer, load_bank(folder), cache, steps=steps)
    found: dict[str, list[TaskScore]] = {}
    for arm in wanted:
        given: dict[str, Any] = {"rows": options.rows, "seeds": SEEDS, "cache": cache}
        with progress_bar(arm) as moved:
            given["progress"] = moved
            if arm == BASE:
                found[arm] = evaluate(model, tokenizer, every, arm=BASE_MODEL, **given)
                continue
            assert bank is not None
            router = build_router(ROUTERS[arm])
            # Without an expert of its own a task's oracle would be the base model again.
            judged = [task for task in every if task.held_in] if arm == ORACLE else every
            found[arm] = measure(model, tokenizer, bank, router, judged, **given)
    if options.only or folder is None:
        return
    body = {
        "what": "Loss and accuracy of post-hoc routers over a collection of experts.",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(("crossroads", "torch", "transformers")),
        "collection": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
        "rows": options.rows,
        "seeds": list(SEEDS),
        "tasks": {task.name: {"held_in": task.held_in, "frame": task.frame} for task in every},
        "arms": {arm: figures(scores) for arm, scores in found.items()},
        "mean_nll": means(found, every),
        "share_closed": closed(found, every),
        "share_closed_by_frame": by_frame(found, every),
        "levels": levels(closed(found, every)),
    }
    write_atomically(options.out, json.dumps(body, indent=1) + "\n")


def with_activations(
    model: Any, tokenizer: Any, bank: AdapterBank, cache: Path, *, steps: int
) -> AdapterBank:
    """Return the bank with the mean inputs of its experts, kept in ``cache``.

    They are taken over the batches that each expert was trained on, ``steps`` of them.
    """
    from safetensors.torch import load_file, save_file

    made = []
    with progress_bar("Mean inputs") as moved:
        for done, expert in enumerate(bank.experts(), start=1):
            digest = hashlib.blake2b(digest_size=8)
            for lora in expert.modules.values():
                digest.update(lora.b_OR.numpy().tobytes())
            path = cache / f"{expert.name}.activation.{steps}.{digest.hexdigest()}.safetensors"
            if not path.is_file():
                batch_of = training_batches(tokenizer, get_task(expert.name), seed=0)
                batches = [batch_of(step) for step in range(steps)]
                seen = record_activation(model, expert, batches).artifacts["activation"]
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(dict(seen), path)
            made.append(load_file(path))
            moved(done, bank.n_experts)
    for name, rows in zip(bank.names, made, strict=True):
        bank.set_artifact(name, "activation", rows)
    return bank


def figures(scores: Sequence[TaskScore]) -> dict[str, Any]:
    """Return, by task, loss and accuracies of every seed."""
    by_task: dict[str, dict[str, Any]] = {}
    for score in scores:
        told = by_task.setdefault(score.task, {"nll": [], "rows": score.rows})
        told["nll"].append(round(score.nll, 4))
        if score.accuracy is not None and score.accuracy_by_mean is not None:
            told.setdefault("accuracy", []).append(round(score.accuracy, 4))
            told.setdefault("accuracy_by_mean", []).append(round(score.accuracy_by_mean, 4))
    return by_task


def of_group(
    found: Mapping[str, Sequence[TaskScore]], every: Sequence[Task], *, held_in: bool
) -> dict[str, list[TaskScore]]:
    names = {task.name for task in every if task.held_in is held_in}
    kept = {arm: [s for s in scores if s.task in names] for arm, scores in found.items()}
    return {arm: scores for arm, scores in kept.items() if scores}


def means(
    found: Mapping[str, Sequence[TaskScore]], every: Sequence[Task]
) -> dict[str, dict[str, list[float]]]:
    """Return, for both groups of tasks and every arm, the mean loss of every seed."""
    return {
        title: {
            arm: [round(loss, 4) for loss in mean_nll(scores).values()]
            for arm, scores in of_group(found, every, held_in=held_in).items()
        }
        for title, held_in in (("held_in", True), ("held_out", False))
    }


def closed(
    found: Mapping[str, Sequence[TaskScore]], every: Sequence[Task]
) -> dict[str, list[float]]:
    """Return, by arm, the share of the gap from the uniform mix to the own experts, by seed."""
    group = of_group(found, every, held_in=True)
    ends = {"worse": group[UNIFORM], "better": group[ORACLE]}
    return {
        arm: [round(share, 4) for share in share_closed(scores, **ends).values()]
        for arm, scores in group.items()
    }


def by_frame(
    found: Mapping[str, Sequence[TaskScore]], every: Sequence[Task]
) -> dict[str, dict[str, list[float]]]:
    """Return the shares over held-in tasks of each frame that several of them have, and the rest.

    Where a frame is a task's own, the router may tell the task by it.
    """
    frames = Counter(task.frame for task in every if task.held_in)
    groups: dict[str, list[Task]] = {}
    for task in every:
        title = task.frame if frames[task.frame] > 1 else "a frame of its own"
        groups.setdefault(title, []).append(task)
    return {
        title: closed(of_group(found, members, held_in=True), members)
        for title, members in groups.items()
    }


def levels(shares: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return each level with what was reached: the median over the seeds."""
    return {
        arm: {
            "wanted": wanted,
            "reached": statistics.median(shares[arm]),
            "holds": statistics.median(shares[arm]) >= wanted,
        }
        for arm, wanted in LEVELS.items()
    }


if __name__ == "__main__":
    main()
