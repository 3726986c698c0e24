"""What a backbone hands to a routed sublayer, and what it gets back.

A block of a model does not know which router sits in its feed-forward place: it calls the
sublayer with the stream ``h_BTD`` *before* the norm and a ``RouteContext``, adds ``delta`` to the
stream, and passes ``carry`` on to the next routed sublayer. Dense and routed sublayers answer
alike, so every backbone of ``crossroads.models`` takes either.

Axes: B sequences, T positions, D width of the model, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError, UsageError
from crossroads.core.later import Deferred, Later, unread

Carry = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteContext:
    """One forward pass, as far as routers may know it. An ordinary value: nothing is kept on it.

    Attributes
    ----------
    mask_BT : bool, True = real token; None = all are. Padding is never routed nor counted
    training : whether this is a training pass (noise, schedules, state)
    step : optimiser steps done; ``progress`` is step / total steps, in [0, 1]
    seed : of the run in training, chosen by the caller in evaluation; every random draw of a router
        is a function of (seed, step, micro_batch, pass_id, layer, iteration)
    micro_batch : index of the batch within an optimiser step
    pass_id : 0, or 1 in the second forward pass of a two-pass loss
    causal : the model is a decoder; routers that would leak the future refuse
    logit_bias : added to clean logits before normalising, shape (E,), (B, E) or (B, T, E); carries
        gradient, also in evaluation
    force_BT : int64, -1 = none; training only: expert that must be among the token's places
    allow : bool, (B, E) or (B, T, E): the logits of the others become -inf
    cond : side information by name, each (B, ...) or (B, T, ...): ``token_id``, ``pos``,
        ``doc_id``, ``label``, ``language``, ``task``, ``domain``
    decisions : decisions given from outside, by layer index; those layers' routers are not called
    """

    mask_BT: Tensor | None = None
    training: bool = False
    step: int = 0
    progress: float = 0.0
    seed: int = 0
    micro_batch: int = 0
    pass_id: int = 0
    causal: bool = False
    logit_bias: Tensor | None = None
    force_BT: Tensor | None = None
    allow: Tensor | None = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    decisions: Mapping[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():
            return  # a graph that looks at progress would be made anew at every step
        if not 0 <= self.progress <= 1:
            raise UsageError(
                f"progress: expected a share of the run in [0, 1], got {self.progress!r}; "
                "give step / total steps"
            )

    def with_cond(self, **more: Tensor) -> RouteContext:
        """Return a copy with further side information."""
        return replace(self, cond={**self.cond, **more})


def as_context(context: RouteContext | None, *, training: bool = False) -> RouteContext:
    """Return the context, or one of its own for None. Raises InputError for anything else."""
    if context is None:
        return RouteContext(training=training)
    if not isinstance(context, RouteContext):
        raise InputError(
            f"context: expected a RouteContext, got {type(context).__name__}; give "
            "RouteContext(mask_BT=..., cond=...)"
        )
    return context


@dataclass(frozen=True, slots=True)
class AuxTerm:
    """One auxiliary loss: a scalar with gradient, and the coefficient it enters the loss with."""

    value: Tensor
    coefficient: float

    @property
    def weighted(self) -> Tensor:
        return self.coefficient * self.value


@dataclass(frozen=True, kw_only=True)
class SublayerOutput:
    """What a feed-forward place returns.

    Attributes
    ----------
    delta : what the block adds to the stream, (B, T, D); (B, D_out) from pooled experts
    aux : auxiliary losses by name
    carry : state for the next routed sublayer of the same pass
    decisions : one per iteration of the layer; empty for dense sublayers
    new_state : state that decisions of the next step depend on, by name (see ``Router.commit``)
    flops : multiply-adds x 2 of this call, all real tokens together; may be given ``Deferred``, for
        who counts needs the decisions on the host
    cache : for incremental decoding, opaque
    """

    delta: Tensor
    aux: Mapping[str, AuxTerm] = field(default_factory=dict)
    carry: Carry = field(default_factory=dict)
    decisions: tuple[Any, ...] = ()
    new_state: Mapping[str, Tensor] = field(default_factory=dict)
    flops: Later[float] = Later(0.0)  # noqa: RUF009 - a descriptor
    cache: Any = None


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """What one routed layer did in a forward pass; the trainer and recorders read these."""

    layer: int
    decisions: tuple[Any, ...]
    aux: Mapping[str, AuxTerm]
    new_state: Mapping[str, Tensor]
    flops: Later[float] = Later(0.0)  # noqa: RUF009 - a descriptor


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """What every backbone returns.

    Attributes
    ----------
    out : logits (B, T, V), (B, classes), a velocity field (B, C, H, W): see the backbone
    records : one per routed layer, in order
    flops : of the feed-forward places of this call (attention is the same in all arms)
    cache : keys, values and routers' caches for the next call; None when not asked for
    hidden_BTD : stream after the last norm
    """

    out: Tensor
    records: tuple[LayerRecord, ...] = ()
    flops: Later[float] = Later(0.0)  # noqa: RUF009 - a descriptor
    cache: Any = None
    hidden_BTD: Tensor | None = None

    def aux_loss(self) -> Tensor | float:
        """Return the sum of coefficient * value over all layers and terms; 0.0 without any."""
        terms = [term.weighted for record in self.records for term in record.aux.values()]
        return sum(terms[1:], terms[0]) if terms else 0.0

    def aux_values(self) -> dict[str, float]:
        """Return the mean over layers of every auxiliary term, for logs."""
        values: dict[str, list[float]] = {}
        for record in self.records:
            for name, term in record.aux.items():
                values.setdefault(name, []).append(float(term.value.detach()))
        return {name: sum(found) / len(found) for name, found in values.items()}


class Sublayer(Protocol):
    """A feed-forward place: dense, or a mixture of experts.

    ``needs`` names what the block must supply beyond the stream: ``attn`` (B, H, Tq, Tk) attention
    probabilities of the same layer, which switches the block to an explicit attention, and
    ``attn_out`` (B, T, D).
    """

    needs: frozenset[str]

    def __call__(
        self,
        h_BTD: Tensor,
        context: RouteContext,
        *,
        attn: Tensor | None = None,
        attn_out: Tensor | None = None,
        carry: Carry | None = None,
        cache: Any = None,
    ) -> SublayerOutput: ...


class Collector:
    """Threads ``carry`` through the sublayers of one forward pass and keeps their records.

    Backbones make one per call::

        routed = Collector(context, caches)
        for index, block in enumerate(self.blocks):
            h_BTD = block(h_BTD, routed, index, ...)   # calls routed(index, block.ffn, h_BTD)
    """

    def __init__(self, context: RouteContext, caches: Mapping[int, Any] | None = None) -> None:
        self.context = context
        self.records: list[LayerRecord] = []
        self.caches: dict[int, Any] = dict(caches or {})
        self._flops: list[Any] = []  # numbers, and such as nobody may ever read
        self._carry: Carry = {}

    @property
    def flops(self) -> float:
        return _added(self._flops)

    def __call__(
        self,
        layer: int,
        sublayer: Sublayer,
        h_BTD: Tensor,
        *,
        attn: Tensor | None = None,
        attn_out: Tensor | None = None,
    ) -> Tensor:
        """Run a sublayer and return its delta."""
        answer = sublayer(
            h_BTD,
            self.context,
            attn=attn,
            attn_out=attn_out,
            carry=self._carry,
            cache=self.caches.get(layer),
        )
        self._flops.append(unread(answer, "flops"))
        if answer.cache is not None:
            self.caches[layer] = answer.cache
        if answer.decisions:
            self._carry = answer.carry
            self.records.append(
                LayerRecord(
                    layer=layer,
                    decisions=answer.decisions,
                    aux=answer.aux,
                    new_state=answer.new_state,
                    flops=unread(answer, "flops"),
                )
            )
        return answer.delta

    def output(
        self, out: Tensor, hidden_BTD: Tensor | None = None, cache: Any = None
    ) -> ModelOutput:
        """Return the model's answer with everything that was collected."""
        return ModelOutput(
            out=out,
            records=tuple(self.records),
            flops=Deferred(partial(_added, tuple(self._flops))),
            cache=cache,
            hidden_BTD=hidden_BTD,
        )


def _added(flops: Sequence[Any]) -> float:
    total = 0.0
    for given in flops:
        total += given.value if isinstance(given, Deferred) else given
    return total


class DenseSublayer(nn.Module):
    """A dense sublayer: ``ffn(norm(h))``, with its count of operations.

    Parameters
    ----------
    ffn : maps (..., D) to (..., D)
    norm : applied first; None where the block has normed already
    flops_per_token : multiply-adds x 2 of ``ffn`` for one token
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, ffn: nn.Module, norm: nn.Module | None, flops_per_token: float) -> None:
        super().__init__()
        self.ffn = ffn
        self.norm = norm if norm is not None else nn.Identity()
        self.flops_per_token = flops_per_token

    def forward(
        self,
        h_BTD: Tensor,
        context: RouteContext,
        *,
        attn: Tensor | None = None,
        attn_out: Tensor | None = None,
        carry: Carry | None = None,
        cache: Any = None,
    ) -> SublayerOutput:
        real = h_BTD.shape[:-1].numel() if context.mask_BT is None else int(context.mask_BT.sum())
        return SublayerOutput(
            delta=self.ffn(self.norm(h_BTD)),
            carry=carry or {},
            flops=self.flops_per_token * real,
        )


SublayerFactory = Callable[[int, int, "nn.Module | None"], nn.Module]  # (layer, width, norm)


def mask_of(h_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Return the mask, all True where none was given. Raises InputError for any other form."""
    if mask_BT is None:
        return torch.ones(h_BTD.shape[:2], dtype=torch.bool, device=h_BTD.device)
    if mask_BT.shape != h_BTD.shape[:2] or mask_BT.dtype != torch.bool:
        raise InputError(
            f"mask: expected bool of shape {tuple(h_BTD.shape[:2])} (True = real token), "
            f"got {mask_BT.dtype} of shape {tuple(mask_BT.shape)}"
        )
    return mask_BT


def routed_layers(model: nn.Module) -> Sequence[nn.Module]:
    """Return the routed sublayers of a model in the order of its modules."""
    return [m for m in model.modules() if getattr(m, "is_routed", False)]
