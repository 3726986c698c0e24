"""Derived views of a routing trace: pure functions, vectorised over rows.

Axes: L columns, E experts (the largest number of a column).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossroads.core.errors import InputError
from crossroads.core.trace import RoutingTrace


def loads(trace: RoutingTrace) -> NDArray[np.int64]:
    """Return how many rows every expert served, (steps, L, E)."""
    steps = int(trace.step.max(initial=-1)) + 1
    shape = (steps, trace.n_columns, trace.n_experts)
    live = trace.expert != trace.sentinel
    row, column, _ = np.nonzero(live)
    at = (trace.step_of_row[row], column, trace.expert[live].astype(np.int64))
    flat = np.ravel_multi_index(at, shape)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)


def batch_unions(trace: RoutingTrace) -> NDArray[np.bool_]:
    """Return which experts a forward pass touched, (steps, L, E)."""
    return loads(trace) > 0


def transitions(trace: RoutingTrace, *, all_places: bool = False) -> NDArray[np.int64]:
    """Return how often expert i of a column is followed by p of the next one, (L - 1, E, E).

    Counts first places, or every pair of places with ``all_places``.
    """
    size = trace.n_experts
    ids = trace.expert.astype(np.int64) if all_places else trace.expert[:, :, :1].astype(np.int64)
    counts = np.zeros((max(trace.n_columns - 1, 0), size, size), np.int64)
    for column in range(len(counts)):
        here, there = ids[:, column, :, None], ids[:, column + 1, None, :]
        both = (here != trace.sentinel) & (there != trace.sentinel)
        pairs = (here * size + there)[both]
        counts[column] = np.bincount(pairs, minlength=size * size).reshape(size, size)
    return counts


@dataclass(frozen=True, kw_only=True)
class AccessStream:
    """Requests to a cache: batch b asks for ``ids[ptr[b]:ptr[b + 1]]`` together."""

    ids: NDArray[np.int64]
    ptr: NDArray[np.int64]


def access_stream(trace: RoutingTrace, column: int | None = None) -> AccessStream:
    """Return the requests row by row; over all columns ids are offset by column * E."""
    chosen = trace.expert if column is None else trace.expert[:, column : column + 1]
    live = chosen != trace.sentinel
    offset = np.arange(chosen.shape[1])[:, None] * (trace.n_experts if column is None else 0)
    ids = (chosen.astype(np.int64) + offset)[live]
    ptr = np.concatenate([[0], np.cumsum(live.sum((1, 2)))]).astype(np.int64)
    return AccessStream(ids=ids, ptr=ptr)


def window_counts(trace: RoutingTrace, column: int, m: int) -> NDArray[np.int64]:
    """Return uses of every expert in all windows of m tokens inside a sequence, (windows, E)."""
    if m < 1:
        raise InputError(f"m: expected at least 1 token, got {m}")
    if not 0 <= column < trace.n_columns:
        raise InputError(
            f"column: expected one of the {trace.n_columns} columns, 0 to {trace.n_columns - 1}, "
            f"got {column!r}"
        )
    ids = trace.per_token().expert[:, column]
    uses = np.zeros((trace.n_tokens + 1, trace.n_experts), np.int64)
    row, place = np.nonzero(ids != trace.sentinel)
    np.add.at(uses, (row + 1, ids[row, place].astype(np.int64)), 1)
    total = np.cumsum(uses, 0)
    spans = zip(trace.seq_ptr[:-1].tolist(), trace.seq_ptr[1:].tolist(), strict=True)
    starts = [np.arange(a, b - m + 1) for a, b in spans]
    start = np.concatenate([*starts, np.zeros(0, np.int64)]).astype(np.int64)
    return np.asarray(total[start + m] - total[start])


def traffic(trace: RoutingTrace, placement: ArrayLike) -> NDArray[np.int64]:
    """Return tokens sent between devices, (steps, L, source, destination).

    ``placement`` is (L, E), the device of every expert; a token starts at the ``home`` of its
    sequence and is sent once to a device whatever the number of its experts there. Raises
    InputError without ``home`` or for a placement of another shape or other than whole numbers
    from 0.
    """
    trace = trace.per_token()
    if trace.home is None:
        raise InputError("trace home: absent; record it to know where sequences start")
    device_LE = _whole(placement, (trace.n_columns, trace.n_experts))
    devices = int(max(device_LE.max(initial=0), trace.home.max(initial=0))) + 1
    row, column, place = np.nonzero(trace.expert != trace.sentinel)
    there = device_LE[column, trace.expert[row, column, place].astype(np.int64)]
    sent = np.unique(np.stack([row, column, there]), axis=1)
    source = trace.home[trace.sequence_of_token[sent[0]]]
    out = np.zeros((int(trace.step.max(initial=-1)) + 1, trace.n_columns, devices, devices), int)
    np.add.at(out, (trace.step[sent[0]], sent[1], source, sent[2]), 1)
    return out


def _whole(placement: ArrayLike, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return a placement as an array of device numbers."""
    try:
        array = np.asarray(placement)
    except ValueError:
        raise InputError(f"placement: expected shape {shape}, got rows of many lengths") from None
    if array.shape != shape:
        raise InputError(f"placement: expected shape {shape}, got {array.shape}")
    if array.dtype.kind not in "iu" or int(array.min(initial=0)) < 0:
        raise InputError(
            f"placement: expected numbers of devices, whole and from 0, got {array.dtype}"
            + (f" and {array.min()}" if array.dtype.kind in "iu" else "")
        )
    return array.astype(np.int64)
