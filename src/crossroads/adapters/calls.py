"""Facts about one batch for the routers of a model, without passing arguments through the model.

>>> with calling(task_ids=torch.tensor([0, 3])):        # doctest: +SKIP
...     model.generate(**inputs)

The value is a context variable: every thread and every asynchronous task has its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.adapters.contract import Call, Router
from crossroads.core.errors import InputError

_CALL: ContextVar[Call] = ContextVar("crossroads_adapter_call", default=Call())  # noqa: B039 - frozen
_BY_SEQUENCE = ("task_ids_B", "embedding_BG", "labels_B", "scalings", "experts")


def current_call() -> Call:
    """Return what was said about the batch that is running; an empty ``Call`` by default."""
    return _CALL.get()


@contextmanager
def calling(
    *,
    mask: Tensor | None = None,
    encoder_mask: Tensor | None = None,
    task_ids: Tensor | None = None,
    embedding: Tensor | None = None,
    labels: Tensor | None = None,
    experts: str | Sequence[str | None] | None = None,
    scalings: Tensor | None = None,
    training: bool = False,
    step: int = 0,
    seed: int = 0,
) -> Iterator[Call]:
    """Say what holds for the batches run inside; the fields are those of ``Call``.

    A single name for ``experts`` holds for every sequence.
    """
    if isinstance(experts, str):
        experts = (experts,)
    call = Call(
        mask_BT=None if mask is None else mask.bool(),
        encoder_mask_BT=None if encoder_mask is None else encoder_mask.bool(),
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


@contextmanager
def adding(**changes: Any) -> Iterator[Call]:
    """Change some fields of the current call, by their names in ``Call``, for what runs inside."""
    call = replace(_CALL.get(), **changes)
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


def check_call(router: Router, call: Call) -> None:
    """Raise InputError where a call lacks what the router must be told."""
    for name in sorted(router.call_data):
        if getattr(call, name) is None:
            argument = re.sub(r"_[A-Z]+$", "", name)
            raise InputError(
                f"router {router.name}: needs {argument!r} of every batch; run the model inside "
                f"'with calling({argument}=...)'"
            )


def for_rows(call: Call, rows: int) -> Call:
    """Return the call with every sequence repeated to make ``rows``: beams, several answers.

    Masks stay as they are, see ``fitted_mask``. Raises InputError where the rows are no multiple of
    the sequences the call speaks of.
    """
    changes: dict[str, Tensor | tuple[str | None, ...]] = {}
    for field in _BY_SEQUENCE:
        values = getattr(call, field)
        if values is None or len(values) in {1, rows}:
            continue
        times = _times(field, len(values), rows)
        if isinstance(values, Tensor):
            changes[field] = torch.repeat_interleave(values, times, 0)
        else:
            changes[field] = tuple(value for value in values for _ in range(times))
    return replace(call, **changes) if changes else call  # type: ignore[arg-type]


def fitted_mask(
    mask_BT: Tensor | None,
    rows: int,
    positions: int,
    *,
    read: tuple[int, int] | None = None,
    n_cached: int = 0,
) -> Tensor | None:
    """Return the mask of an input of ``rows`` x ``positions`` tokens.

    A mask of more positions speaks of tokens in the cache too: its last ones are taken. One of
    fewer was given for the prompt: what came after it is real. Models that flatten tokens into rows
    get it flattened. Raises InputError where the rows are no multiple of the mask's.

    Parameters
    ----------
    read : sequences and positions that the pass reads; None = not known, and an input of as many
        rows as the mask has numbers is taken for flattened tokens
    n_cached : positions in the cache before them
    """
    if mask_BT is None:
        return None
    if read is None and len(mask_BT) != rows and mask_BT.numel() == rows:
        read = (len(mask_BT), mask_BT.shape[1])
    if read is not None and positions == 1 < read[1] and rows == read[0] * read[1]:
        flat = fitted_mask(mask_BT, *read, read=read, n_cached=n_cached)
        return None if flat is None else flat.reshape(rows, 1)
    width = mask_BT.shape[1]
    if width != positions:
        whole = max(width, n_cached + positions) if width > positions else positions
        mask_BT = nn.functional.pad(mask_BT, (0, whole - width), value=True)
        mask_BT = mask_BT[:, whole - positions :]
    if len(mask_BT) == rows:
        return mask_BT
    return torch.repeat_interleave(mask_BT, _times("mask", len(mask_BT), rows), 0)


def _times(field: str, sequences: int, rows: int) -> int:
    if not sequences or rows % sequences:
        raise InputError(
            f"call: {field} speaks of {sequences} sequences, the batch has {rows}, which is no "
            "multiple of it"
        )
    return rows // sequences
