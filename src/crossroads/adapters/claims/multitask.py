"""What explicit multi-task training would give: the router ``multitask`` on all held-in tasks.

It needs everybody's data in one place, which routing among finished experts does without.
"""

from __future__ import annotations

from crossroads.adapters.base_models import DEFAULT, BaseModel, as_text
from crossroads.adapters.claims.collection_bed import CollectionBed
from crossroads.adapters.learning import learnt
from crossroads.core.progress import progress_bar
from crossroads.models.embedding_cache import cache_folder

_STEPS_A_TASK = 20


def multitask_means(bed: CollectionBed) -> dict[str, list[float]]:
    """Return its nats per answer token, means over tasks, a value a seed."""
    tasks = bed.tasks(held_in=True)
    base = BaseModel(
        name=DEFAULT,
        model=bed.model,
        tokenizer=bed.tokenizer,
        chat=as_text,
        ends=frozenset(),
        context=int(bed.model.config.max_position_embeddings),
    )
    with progress_bar("one adapter for all tasks") as progress:
        bank = learnt(
            "multitask", base, bed.bank, tasks, cache_folder() / "adapters" / "learnt",
            steps=_STEPS_A_TASK * len(tasks), progress=progress,
        ).bank  # fmt: skip
    alone = CollectionBed(rows=bed.rows, bank=bank, held_in=bed.held_in, model=bed.model)
    return {
        kind: [round(v, 4) for v in alone.means("multitask", held_in=kind == "held_in")]
        for kind in ("held_in", "held_out")
    }
