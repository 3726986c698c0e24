"""One forward pass of a routed model: what was said about it, and what its layers decided.

Decisions are shared by the layers of a scope, and made anew where a block of the model is computed
a second time in the backward pass (gradient checkpointing), which happens outside the caller's
``calling(...)``: the pass keeps its call.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.adapters.calls import fitted_mask, for_rows
from crossroads.adapters.contract import Call, Routing


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What one layer did in a pass: its routing, and which tokens of its input are real.

    ``shape`` is (sequences, positions) of its input; ``mask_BT`` None = all tokens are real.
    """

    routing: Routing
    shape: tuple[int, int]
    mask_BT: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Masks:
    """Attention masks the model was called with, (B, T) bool, of its one stack or of two."""

    main_BT: Tensor | None = None
    encoder_BT: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Shared:
    routing: Routing
    decider: str
    call: Call
    with_gradient: bool


@dataclass(slots=True, eq=False)
class Pass:
    """State of one forward pass.

    Attributes
    ----------
    call : what holds for it
    masks : the model's own, used where the call gives none
    ids_BT : token ids it was called with, of the decoder where there are two stacks
    read : sequences and positions it was called with, of the same stack; None = not known
    n_cached : positions that were in the cache before it
    entered : the modules that were started in it; ``is_open`` until the first of them has returned
    decided : decisions by the layer or the scope that shares them
    seen : decisions by layer, as the layer used them; where whole blocks are experts, the block's
    """

    call: Call = field(default_factory=Call)
    masks: Masks = field(default_factory=Masks)
    ids_BT: Tensor | None = None
    read: tuple[int, int] | None = None
    n_cached: int = 0
    entered: list[nn.Module] = field(default_factory=list)
    is_open: bool = False
    decided: dict[str, Routing] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    _shared: dict[str, _Shared] = field(default_factory=dict)
    _calls: dict[tuple[int, int, bool], Call] = field(default_factory=dict)

    def apart(self) -> Pass:
        """Return the same pass without decisions: what layers decide in it is not kept here."""
        return replace(self, decided={}, seen={}, _shared={})

    def say(self, call: Call) -> None:
        """Replace the call."""
        self.call = call
        self._calls.clear()

    def call_for(self, rows: int, positions: int, *, encoder: bool) -> Call:
        """Return the call for an input of ``rows`` x ``positions`` tokens of a stack."""
        key = (rows, positions, encoder)
        found = self._calls.get(key)
        if found is None:
            call = for_rows(self.call, rows)
            if encoder:
                mask = (
                    call.encoder_mask_BT
                    if call.encoder_mask_BT is not None
                    else self.masks.encoder_BT
                )
            else:
                mask = call.mask_BT if call.mask_BT is not None else self.masks.main_BT
            read, n_cached = (None, 0) if encoder else (self.read, self.n_cached)
            mask = fitted_mask(mask, rows, positions, read=read, n_cached=n_cached)
            found = call if mask is call.mask_BT else replace(call, mask_BT=mask)
            self._calls[key] = found
        return found

    def shared(self, owner: str, module: str, call: Call) -> Routing | None:
        """Return the decision a layer shares, None where it must be made (again)."""
        found = self._shared.get(owner)
        if found is None or found.decider == module:
            return None  # asked again, the decider computes its block a second time
        if torch.is_grad_enabled() and not found.with_gradient:
            return None  # decided in a first run without gradient, of a block that runs again
        if not owner and found.call is not call:
            return None  # of the model: it holds for the call it was made from
        return found.routing

    def mask_of(self, owner: str) -> Tensor | None:
        """Return which tokens of a decision's input are real, (B, T) bool; None = all are."""
        found = self._shared.get(owner)
        return None if found is None else found.call.mask_BT

    def share(self, owner: str, module: str, call: Call, routing: Routing) -> None:
        """Keep a decision for the layers that share it."""
        known = self._shared.get(owner)
        if known is None or known.decider == module or known.call is not call:
            self._shared[owner] = _Shared(routing, module, call, torch.is_grad_enabled())
        self.decided[owner] = routing


class Passes(threading.local):
    """The passes of one model: every thread has its own, and may switch routing off for itself."""

    def __init__(self) -> None:
        self.current = Pass()
        self.is_enabled = True

    def __reduce__(self) -> tuple[type[Passes], tuple[()]]:
        return Passes, ()  # a copy of the model starts with none


def begun(call: Call, more: Mapping[str, Any], *, is_encoder: bool, has_two_stacks: bool) -> Pass:
    """Return the pass that a module's keyword arguments begin.

    Masks of four axes say nothing about single tokens and are left out.
    """
    main, decoder = (_mask(more.get(name)) for name in ("attention_mask", "decoder_attention_mask"))
    if is_encoder:
        masks = Masks(encoder_BT=main)
    else:
        masks = Masks(main_BT=decoder, encoder_BT=main) if has_two_stacks else Masks(main_BT=main)
    stack = "decoder_" if has_two_stacks and not is_encoder else ""
    ids_BT = more.get(f"{stack}input_ids")
    told = ids_BT if ids_BT is not None else more.get(f"{stack}inputs_embeds")
    cache = more.get("past_key_values")
    return Pass(
        call=call,
        masks=masks,
        ids_BT=ids_BT,
        read=(told.shape[0], told.shape[1]) if isinstance(told, Tensor) and told.ndim > 1 else None,
        n_cached=0 if cache is None else int(cache.get_seq_length()),
        is_open=True,
    )


def _mask(value: Any) -> Tensor | None:
    if not isinstance(value, Tensor) or value.ndim != 2:
        return None
    return value.bool()
