"""Facts about one batch for the routers of a model, without passing arguments through the model.

>>> with calling(task_ids=torch.tensor([0, 3])):        # doctest: +SKIP
...     model.generate(**inputs)

The value is a context variable: every thread and every asynchronous task has its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import torch
from torch import Tensor

from crossroads.adapters.contract import Call
from crossroads.core.errors import InputError

_CALL: ContextVar[Call] = ContextVar("crossroads_adapter_call", default=Call())  # noqa: B039 - frozen
_BY_SEQUENCE = ("mask_BT", "task_ids_B", "embedding_BG", "labels_B", "scalings")


def current_call() -> Call:
    """Return what was said about the batch that is running; an empty ``Call`` by default."""
    return _CALL.get()


@contextmanager
def calling(
    *,
    mask: Tensor | None = None,
    task_ids: Tensor | None = None,
    embedding: Tensor | None = None,
    labels: Tensor | None = None,
    experts: Sequence[str | None] | None = None,
    scalings: Tensor | None = None,
    training: bool = False,
    step: int = 0,
    seed: int = 0,
) -> Iterator[Call]:
    """Say what holds for the batches run inside; the fields are those of ``Call``."""
    call = Call(
        mask_BT=None if mask is None else mask.bool(),
        task_ids_B=task_ids,
        embedding_BG=embedding,
        labels_B=labels,
        experts=None if experts is None else tuple(experts),
        scalings=scalings,
        training=training,
        step=step,
        seed=seed,
    )
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


def for_rows(call: Call, rows: int) -> Call:
    """Return the call with every sequence repeated to make ``rows``: beams, several answers.

    Raises InputError where the rows are no multiple of the sequences the call speaks of.
    """
    changes: dict[str, Tensor | tuple[str | None, ...]] = {}
    for field in (*_BY_SEQUENCE, "experts"):
        values = getattr(call, field)
        if values is None or len(values) in {1, rows}:
            continue
        if rows % len(values):
            raise InputError(
                f"call: {field} speaks of {len(values)} sequences, the batch has {rows}, which is "
                "no multiple of it"
            )
        times = rows // len(values)
        if isinstance(values, Tensor):
            changes[field] = torch.repeat_interleave(values, times, 0)
        else:
            changes[field] = tuple(value for value in values for _ in range(times))
    return replace(call, **changes) if changes else call  # type: ignore[arg-type]
