"""Recorded passes as the arrays of a routing trace: converted in bulk, sorted, and put together.

Axes: N tokens, E experts, K places, L columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossroads.core.trace import RoutingTrace, id_dtype
from crossroads.moe.contract import NOBODY

BUNDLE = 2**18  # places converted at once
UNKNOWN_TOKEN = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One router call: which it was, and its places as tensors or arrays of its own rows."""

    what: dict[str, Any]
    idx: Any
    w: Any
    dropped: Any = None
    logits: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One forward pass; ``row`` and ``flat`` say where its real tokens are."""

    step: int
    columns: list[Column]
    mask: Any
    token_id: Any
    pos: Any
    doc: Any
    sequence: NDArray[np.int64]
    phase: NDArray[np.uint8]


def _array(value: Tensor | None) -> NDArray[Any] | None:
    if value is None:
        return None
    value = value.float() if value.dtype == torch.bfloat16 else value
    return value.detach().cpu().numpy()


def compacted(passes: Sequence[Pass]) -> Iterator[Pass]:
    """Yield passes as arrays of real rows only, in the types of the trace.

    Many are converted at once, up to ``BUNDLE`` places, so that small ones cost no call each.
    """
    bundle: list[Pass] = []
    size = 0
    for one in passes:
        bundle.append(one)
        size += sum(column.idx.numel() for column in one.columns)
        if size >= BUNDLE:
            yield from _converted(bundle)
            bundle, size = [], 0
    yield from _converted(bundle)


def _converted(passes: Sequence[Pass]) -> list[Pass]:
    masks = {id(p.mask): p.mask for p in passes}  # passes without padding share one
    kept = {number: _kept_rows(mask.cpu().numpy()) for number, mask in masks.items()}
    columns = [
        (column, kept[id(one.mask)].by_granularity[column.what["granularity"]])
        for one in passes
        for column in one.columns
    ]
    places = _sorted_columns(columns)
    done = []
    for one in passes:
        rows = kept[id(one.mask)]
        taken: dict[str, Any] = {}
        for name in ("token_id", "pos", "doc"):
            value = _array(getattr(one, name))
            taken[name] = (
                None if value is None else np.broadcast_to(value, rows.mask.shape)[rows.mask]
            )
        done.append(
            replace(
                one,
                columns=[next(places) for _ in one.columns],
                mask=rows.row_of_token,
                sequence=one.sequence[rows.real],
                phase=one.phase[rows.real],
                **taken,
            )
        )
    return done


@dataclass(frozen=True)
class _KeptRows:
    """What a mask keeps: its real rows, the real row of every real token, rows by granularity."""

    mask: NDArray[np.bool_]
    real: NDArray[np.int64]
    row_of_token: NDArray[np.int64]
    by_granularity: dict[str, NDArray[np.int64]]


def _kept_rows(mask: NDArray[np.bool_]) -> _KeptRows:
    real = np.flatnonzero(mask.any(1))
    return _KeptRows(
        mask=mask,
        real=real,
        row_of_token=np.searchsorted(real, np.nonzero(mask)[0]),
        by_granularity={
            "token": np.flatnonzero(mask),
            "sequence": real,
            "batch": np.zeros(len(real), np.int64),
        },
    )


def _sorted_columns(
    columns: Sequence[tuple[Column, NDArray[np.int64]]],
) -> Iterator[Column]:
    """Yield columns as arrays of these rows; those of one form are sorted in one go."""
    forms: dict[tuple[Any, ...], list[int]] = {}
    for at, (column, _) in enumerate(columns):
        form = (column.idx.shape[1], column.what["n_experts"], column.dropped is not None)
        forms.setdefault(form, []).append(at)
    found: dict[int, dict[str, Any]] = {}
    for (_, n_experts, may_lose), members in forms.items():
        kept: dict[str, Any] = {"dropped": None}
        for name, dtype in (("idx", np.int32), ("w", np.float32), ("dropped", np.bool_)):
            if name != "dropped" or may_lose:
                chosen = [(getattr(columns[at][0], name), columns[at][1]) for at in members]
                kept[name] = _joined_rows(chosen).astype(dtype, casting="same_kind", copy=False)
        sorted_places = _sorted_places(**kept, n_experts=n_experts)
        end = 0
        for at in members:
            start, end = end, end + len(columns[at][1])
            ids, weight, lost = (None if a is None else a[start:end] for a in sorted_places)
            is_lossy = lost is not None and lost.any()
            found[at] = {"idx": ids, "w": weight, "dropped": lost if is_lossy else None}
    for at, (column, rows) in enumerate(columns):
        logits = None if column.logits is None else _half(column.logits, rows)
        yield Column(what=column.what, **found[at], logits=logits)


def _joined_rows(chosen: Sequence[tuple[Tensor, NDArray[np.int64]]]) -> NDArray[Any]:
    """Return rows of many tensors one after the other; converted at once where all are kept."""
    is_whole = all(len(rows) == len(value) > 1 for value, rows in chosen)
    if is_whole and len({value.device for value, _ in chosen}) == 1:
        return np.asarray(_array(torch.cat([value.detach() for value, _ in chosen])))
    return np.concatenate([_rows(value, rows) for value, rows in chosen])


def _rows(value: Tensor, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return rows of a tensor; real rows are in order, so that as many as there are is all."""
    array = np.asarray(_array(value))
    return array if len(rows) == len(array) > 1 else array[rows]


def _half(logits: Tensor, rows: NDArray[Any]) -> NDArray[np.float16]:
    return _as_half(_rows(logits, rows))


def _as_half(values: NDArray[Any]) -> NDArray[np.float16]:
    """Return float16; what is beyond it is infinite, and says so."""
    if values.dtype == np.float32:  # twenty times as fast as numpy's own
        return torch.from_numpy(np.ascontiguousarray(values)).half().numpy()
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _sorted_places(
    idx: NDArray[Any], w: NDArray[np.float32], dropped: NDArray[np.bool_] | None, n_experts: int
) -> tuple[NDArray[Any], NDArray[np.float16], NDArray[np.bool_] | None]:
    """Return ids, weights and what was lost, places sorted.

    By descending |w|, ties to the lower id; lost ones next, empty ones last.
    """
    picked = idx != NOBODY
    lost = None if dropped is None else dropped & picked
    size = np.abs(w)
    rank = (~picked).view(np.uint8) * np.uint8(2)
    if lost is not None:
        rank |= lost.view(np.uint8)
    # Most routers give places in this order already.
    before, after = np.s_[:, :-1], np.s_[:, 1:]
    is_tie = (size[before] == size[after]) & (idx[before] <= idx[after])
    falls = (rank[before] == rank[after]) & ((size[before] > size[after]) | is_tie)
    astray = np.flatnonzero(~(falls | (rank[before] < rank[after])).all(-1))
    if len(astray):
        order = np.lexsort((idx[astray], -size[astray], rank[astray]), axis=-1)
        idx, w, picked = idx.copy(), w.copy(), picked.copy()
        for array in (idx, w, picked) if lost is None else (idx, w, picked, lost):
            array[astray] = np.take_along_axis(array[astray], order, -1)
    dtype = id_dtype(n_experts)
    counts = picked if lost is None else picked & ~lost
    weight = _as_half(np.where(counts, w, np.float32(0)))
    return np.where(picked, idx, np.iinfo(dtype).max).astype(dtype), weight, lost


def assembled(
    parts: list[Pass],
    meta: dict[str, Any],
    facts: Mapping[int, dict[str, Any]],
    home: dict[int, int],
    domain: dict[int, int],
) -> RoutingTrace:
    sequence = np.concatenate([p.sequence[p.mask] for p in parts])
    doc = np.concatenate([_or(p.doc, 0, p.mask) for p in parts]).astype(np.int64)
    step = np.concatenate([np.full(len(p.mask), p.step, np.int32) for p in parts])
    order = _order(sequence, doc, step)
    keys = np.stack([sequence, doc], 1)[order]
    starts = np.flatnonzero(np.any(np.diff(keys, axis=0, prepend=keys[:1] - 1) != 0, axis=1))
    seq_ptr = np.append(starts, len(keys)).astype(np.int64)
    whole = all(c.what["granularity"] != "token" for c in parts[0].columns) and (
        len(seq_ptr) - 1 == sum(len(p.sequence) for p in parts)
    )
    # Without packing and decoding, decisions about sequences are stored once for each.
    rows = np.argsort(np.concatenate([p.sequence for p in parts])) if whole else order
    places = _stacked(parts, rows, whole=whole)
    index = np.arange(len(keys)) - np.repeat(starts, np.diff(seq_ptr))
    with_pos = all(p.pos is not None for p in parts)
    pos = np.concatenate([p.pos for p in parts])[order] if with_pos else index
    token_id = np.concatenate([_or(p.token_id, UNKNOWN_TOKEN, p.mask) for p in parts])
    phase = np.concatenate([p.phase[p.mask] for p in parts])
    first = keys[starts, 0].tolist()
    return RoutingTrace(
        **places,
        seq_ptr=seq_ptr,
        token_id=token_id[order].astype(np.int32),
        pos=pos.astype(np.int32),
        step=step[order],
        phase=phase[order],
        home=np.array([home.get(s, 0) for s in first], np.int16) if home else None,
        domain=np.array([domain.get(s, -1) for s in first], np.int16) if domain else None,
        meta={
            **meta,
            "granularity": "sequence" if whole else "token",
            "rows": [{**facts.get(c.what["layer"], {}), **c.what} for c in parts[0].columns],
        },
    )


def _order(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """Return the stable order by the first key, then the next: positions stay in order."""
    falls = np.zeros(max(len(keys[0]) - 1, 0), bool)
    for key in reversed(keys):
        before, after = key[:-1], key[1:]
        falls = (before > after) | ((before == after) & falls)
    # Passes that begin their sequences come in order.
    return np.lexsort(keys[::-1]) if falls.any() else np.arange(len(keys[0]))


def _or(values: NDArray[Any] | None, default: int, like: NDArray[Any]) -> NDArray[Any]:
    return np.full(len(like), default) if values is None else values


def _stacked(parts: list[Pass], rows: NDArray[Any], *, whole: bool) -> dict[str, Any]:
    """Return ``expert``, ``weight`` and what else there is, columns padded to common sizes."""
    columns = [list(group) for group in zip(*(p.columns for p in parts), strict=True)]
    spread = [None if whole else p.mask for p in parts]
    k = max(c.idx.shape[1] for group in columns for c in group)
    experts = max(group[0].what["n_experts"] for group in columns)
    dtype = id_dtype(experts)
    none = np.iinfo(dtype).max
    shape = (len(rows), len(columns), k)
    in_order = np.array_equal(rows, np.arange(len(rows)))
    at_rows = slice(None) if in_order else rows
    wanted = np.full(shape, none, dtype)
    weight, dropped = np.zeros(shape, np.float16), np.zeros(shape, bool)
    keep_logits = any(c.logits is not None for group in columns for c in group)
    logits = np.full((*shape[:2], experts), -np.inf, np.float16) if keep_logits else None
    for at, group in enumerate(columns):
        own = np.iinfo(id_dtype(group[0].what["n_experts"])).max
        by_token = group[0].what["granularity"] == "token"
        picks = [None if by_token else row_of_token for row_of_token in spread]
        ids = _joined([c.idx for c in group], picks, own)[at_rows]
        if own != none:  # widened first: NumPy would cut the larger sentinel down to the ids' type
            ids = np.where(ids == own, none, ids.astype(dtype))
        wanted[:, at, : ids.shape[1]] = ids
        weight[:, at, : ids.shape[1]] = _joined([c.w for c in group], picks, 0)[at_rows]
        if any(c.dropped is not None for c in group):
            known = [np.zeros(c.idx.shape, bool) if c.dropped is None else c.dropped for c in group]
            dropped[:, at, : ids.shape[1]] = _joined(known, picks, False)[at_rows]
        if logits is not None and all(c.logits is not None for c in group):
            found = _joined([c.logits for c in group], picks, 0)[at_rows]
            logits[:, at, : found.shape[1]] = found
    lost = dropped.any()
    return {
        "expert": np.where(dropped, none, wanted).astype(dtype) if lost else wanted,
        "weight": weight,
        "logits": logits,
        "dropped": dropped if lost else None,
        "wanted": wanted if lost else None,
    }


def _joined(
    arrays: Sequence[NDArray[Any]], picks: Sequence[NDArray[Any] | None], filler: Any
) -> NDArray[Any]:
    """Return the picked rows of all passes, one after the other; None picks all of a pass."""
    k = max(array.shape[1] for array in arrays)
    pieces = []
    for array, pick in zip(arrays, picks, strict=True):
        if array.shape[1] < k:
            pad = [(0, 0), (0, k - array.shape[1])]
            array = np.pad(array, pad, constant_values=filler)  # noqa: PLW2901
        pieces.append(array if pick is None else array[pick])
    return np.concatenate(pieces)
