"""Decisions of a routed model as a routing trace, one column a layer.

>>> recorder = Recorder(routed, meta={"model": "smollm2"})     # doctest: +SKIP
>>> with recorder.on():                                        # doctest: +SKIP
...     model.generate(**inputs)
>>> recorder.trace().save(Path("run.npz"))                     # doctest: +SKIP

Passes that go on from a cache are decoding steps of the sequences before; beams count as sequences.
Layers over the tokens of an encoder are left out and named in ``meta["left_out"]``, since the
columns of a trace are decisions about the same tokens. Where heads choose, their mean is recorded.

Axes: L layers, B sequences, T positions, N real tokens, K places, E experts, H heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossroads.adapters.contract import Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.passes import Pass, Seen
from crossroads.adapters.scopes import reads_encoder
from crossroads.core.errors import InputError
from crossroads.core.trace import DECODE, PREFILL, RoutingTrace, id_dtype

PENDING_PASSES = 64  # kept as tensors before they are turned into compact arrays
UNKNOWN_TOKEN = -1
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.(.*)$")


@dataclass(frozen=True, slots=True)
class _Kept:
    """One pass, as the model left it."""

    step: int
    is_decoding: bool
    first_sequence: int
    ids_BT: Tensor | None
    seen: list[Seen]


@dataclass(frozen=True, slots=True)
class _Part:
    """One pass in compact arrays, a row a real token."""

    expert: NDArray[Any]
    weight: NDArray[np.float16]
    sequence: NDArray[np.int64]
    token_id: NDArray[np.int32]
    step: int
    is_decoding: bool


class Recorder:
    """Collects the decisions of forward passes.

    Parameters
    ----------
    routed : the model; its experts must stay the same
    places : how many experts of a token are kept, those of largest weight; None = all
    meta : what else to keep with the trace: ``model``, ``seed``, ``source``, ...
    """

    def __init__(
        self,
        routed: RoutedModel,
        *,
        places: int | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.routed, self.places = routed, places
        self.meta = {"kind": "adapters", **(meta or {})}
        self._experts, self._known = routed.bank.names, routed.bank.keys_by_name
        self._layers: list[str] = []
        self._left_out: set[str] = set()
        self._pending: list[_Kept] = []
        self._parts: list[_Part] = []
        self._is_normalised: list[bool] = []
        self._step = self._n_sequences = self._n_current = 0

    @contextmanager
    def on(self) -> Iterator[Recorder]:
        """Record every forward pass inside."""
        with self.routed.watched(self.add):
            yield self

    def add(self, one: Pass) -> None:
        """Take one pass; one of an encoder alone is left out.

        Raises InputError where experts or layers are others than in the first.
        """
        if not self.routed.bank.is_as_in(self._known):
            raise InputError("recorder: the experts changed; begin another one for the new set")
        self._experts = self.routed.bank.names
        kept = {name: seen for name, seen in one.seen.items() if not self._is_encoders(name)}
        self._left_out |= one.seen.keys() - kept.keys()
        if not kept:
            return
        if not self._layers:
            self._layers = list(kept)
            self._is_normalised = [seen.routing.normalised for seen in kept.values()]
        if list(kept) != self._layers:
            raise InputError(
                f"recorder: pass {self._step} has other layers than the first; use one recorder "
                "for each model and router"
            )
        seen = list(kept.values())
        rows = seen[0].shape[0]
        is_decoding = one.n_cached > 0 and rows == self._n_current
        if not is_decoding:
            self._n_sequences += rows
        self._n_current = rows
        first = self._n_sequences - rows
        self._pending.append(_Kept(self._step, is_decoding, first, one.ids_BT, seen))
        self._step += 1
        if len(self._pending) >= PENDING_PASSES:
            self._compact()

    def trace(self) -> RoutingTrace:
        """Return everything recorded so far. Raises InputError when there is nothing."""
        self._compact()
        if not self._parts:
            raise InputError("recorder: no forward pass was recorded; run the model inside on()")
        lengths = [len(part.sequence) for part in self._parts]
        sequence = np.concatenate([part.sequence for part in self._parts])
        steps = np.repeat(np.array([part.step for part in self._parts], np.int32), lengths)
        phases = [DECODE if part.is_decoding else PREFILL for part in self._parts]
        order = np.lexsort((steps, sequence))  # stable: positions stay in order
        starts = np.searchsorted(sequence[order], np.arange(self._n_sequences + 1))
        position = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
        k = max(part.expert.shape[-1] for part in self._parts)
        none = int(np.iinfo(id_dtype(len(self._experts))).max)
        return RoutingTrace(
            expert=np.concatenate([_wider(p.expert, k, none) for p in self._parts])[order],
            weight=np.concatenate([_wider(p.weight, k, 0) for p in self._parts])[order],
            seq_ptr=starts.astype(np.int64),
            token_id=np.concatenate([part.token_id for part in self._parts])[order],
            pos=position.astype(np.int32),
            step=steps[order],
            phase=np.repeat(np.array(phases, np.uint8), lengths)[order],
            meta=self._meta(),
        ).check()

    def _meta(self) -> dict[str, Any]:
        rows = [
            {
                **_place(name),
                "n_experts": len(self._experts),
                "weights": "normalised" if is_normalised else "unnormalised",
                "granularity": "token",
                "module": name,
            }
            for name, is_normalised in zip(self._layers, self._is_normalised, strict=True)
        ]
        found = {**self.meta, "experts": list(self._experts), "granularity": "token", "rows": rows}
        if self._left_out:
            found["left_out"] = sorted(self._left_out)
        if self.places is not None:
            found["approx_topk"] = self.places
        return found

    def _is_encoders(self, name: str) -> bool:
        return self.routed.has_two_stacks and reads_encoder(name)

    @torch.no_grad()
    def _compact(self) -> None:
        self._parts += [self._part(kept) for kept in self._pending]
        self._pending.clear()

    def _part(self, kept: _Kept) -> _Part:
        shape, mask_BT = kept.seen[0].shape, kept.seen[0].mask_BT
        real_BT = torch.ones(shape, dtype=torch.bool) if mask_BT is None else mask_BT
        n_experts = len(self._experts)
        limit = min(self.places or n_experts, n_experts)
        sorted_ = [_sorted(seen.routing, n_experts, limit) for seen in kept.seen]
        k = max(weights.shape[-1] for _, weights in sorted_)
        dtype = id_dtype(n_experts)
        none = int(np.iinfo(dtype).max)
        expert = np.full((int(real_BT.sum()), len(sorted_), k), none, dtype)
        weight = np.zeros(expert.shape, np.float16)
        for column, (index, weights) in enumerate(sorted_):
            places = weights.shape[-1]
            half = weights.expand(*shape, places)[real_BT].half().numpy()
            ids = index.expand(*shape, places)[real_BT].numpy()
            weight[:, column, :places] = half
            expert[:, column, :places] = np.where(half == 0, none, ids)
        known = kept.ids_BT is not None and tuple(kept.ids_BT.shape) == shape
        token_id = kept.ids_BT[real_BT] if known and kept.ids_BT is not None else None
        rows = torch.arange(shape[0])[:, None].expand(shape)[real_BT] + kept.first_sequence
        return _Part(
            expert=expert,
            weight=weight,
            sequence=rows.numpy(),
            token_id=np.full(len(rows), UNKNOWN_TOKEN, np.int32)
            if token_id is None
            else token_id.numpy().astype(np.int32),
            step=kept.step,
            is_decoding=kept.is_decoding,
        )


def _sorted(routing: Routing, n_experts: int, limit: int) -> tuple[Tensor, Tensor]:
    """Return places (b, t, K) by descending size of their weights, ties to the lower expert."""
    if routing.index is not None and routing.index.shape[2] == 1:
        index, weights = routing.index[:, :, 0], routing.weights[:, :, 0].detach().float()
        by_id = index.argsort(-1)
        index, weights = index.gather(-1, by_id), weights.gather(-1, by_id)
    else:
        weights = routing.dense(n_experts).detach().float().mean(2)
        index = torch.arange(n_experts).expand_as(weights)
    order = weights.abs().sort(stable=True, dim=-1, descending=True).indices[..., :limit]
    return index.gather(-1, order), weights.gather(-1, order)


def _place(name: str) -> dict[str, Any]:
    """Return layer and branch of a module's name: the number of its block, and what follows."""
    found = _BLOCK.search(name)
    layer, branch = (int(found.group(1)), found.group(2)) if found else (0, name)
    return {"layer": layer, "iteration": 0, "branch": branch}


def _wider(array: NDArray[Any], k: int, filler: int) -> NDArray[Any]:
    pad = k - array.shape[-1]
    return np.pad(array, [(0, 0), (0, 0), (0, pad)], constant_values=filler)
