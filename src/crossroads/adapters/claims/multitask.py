"""What explicit multi-task training would give: the router ``multitask`` on all held-in tasks.

It needs everybody's data in one place, which routing among finished experts does without.
"""

from __future__ import annotations

from crossroads.adapters.claims.collection_bed import CollectionBed
from crossroads.adapters.lessons import Lesson
from crossroads.adapters.routers.multitask import Multitask
from crossroads.core.progress import progress_bar
from crossroads.models.embedding_cache import cache_folder

_STEPS_A_TASK = 20


def multitask_means(bed: CollectionBed) -> dict[str, list[float]]:
    """Return its nats per answer token, means over tasks, a value a seed."""
    tasks = bed.tasks(held_in=True)
    checkpoint = cache_folder() / "adapters" / "multitask.checkpoint"
    with progress_bar("one adapter for all tasks") as progress:
        lesson = Lesson(
            model=bed.model,
            tokenizer=bed.tokenizer,
            bank=bed.bank,
            tasks=tasks,
            steps=_STEPS_A_TASK * len(tasks),
            checkpoint=checkpoint,
            identity=f"multitask of {', '.join(task.name for task in tasks)}",
            progress=progress,
        )
        bank = Multitask().learn(lesson)
    checkpoint.unlink(missing_ok=True)
    alone = CollectionBed(rows=bed.rows, bank=bank, held_in=bed.held_in, model=bed.model)
    return {
        kind: [round(v, 4) for v in alone.means("multitask", held_in=kind == "held_in")]
        for kind in ("held_in", "held_out")
    }
