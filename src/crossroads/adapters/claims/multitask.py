"""One LoRA trained on all held-in tasks together: what explicit multi-task training would give.

It needs everybody's data in one place, which routing among finished experts does without. Same
targets, rank and rates as the experts; a batch is of one task, tasks take turns.
"""

from __future__ import annotations

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.claims.collection_bed import CollectionBed
from crossroads.adapters.collection.batches import training_batches
from crossroads.adapters.collection.recipe import RECIPE
from crossroads.adapters.experts import new_expert, train_expert
from crossroads.adapters.texts import TextBatch
from crossroads.adapters.training import TrainSettings
from crossroads.core.progress import progress_bar
from crossroads.models.embedding_cache import cache_folder

_STEPS_A_TASK = 20


def multitask_means(bed: CollectionBed) -> dict[str, list[float]]:
    """Return its nats per answer token, means over tasks, a value a seed."""
    tasks = bed.tasks(held_in=True)
    batches = [training_batches(bed.tokenizer, task, seed=RECIPE.seed) for task in tasks]

    def batch_of(step: int) -> TextBatch:
        turn, place = divmod(step, len(tasks))
        return batches[place](turn)

    start = new_expert(
        bed.model, "multitask", targets=RECIPE.targets, rank=RECIPE.rank, alpha=RECIPE.alpha
    )
    steps = _STEPS_A_TASK * len(tasks)
    checkpoint = cache_folder() / "adapters" / "multitask.checkpoint"
    with progress_bar("one adapter for all tasks") as progress:
        expert, _ = train_expert(
            bed.model,
            start,
            batch_of,
            TrainSettings(steps=steps, warmup=RECIPE.warmup, clip=RECIPE.clip, seed=RECIPE.seed),
            lr=RECIPE.lr,
            checkpoint=checkpoint,
            identity=f"multitask of {', '.join(task.name for task in tasks)}",
            progress=progress,
        )
    checkpoint.unlink(missing_ok=True)
    alone = CollectionBed(
        rows=bed.rows, bank=AdapterBank([expert]), held_in=bed.held_in, model=bed.model
    )
    return {
        kind: [round(v, 4) for v in alone.means("uniform", held_in=kind == "held_in")]
        for kind in ("held_in", "held_out")
    }
