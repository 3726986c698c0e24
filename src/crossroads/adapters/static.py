"""Routing that holds for a whole call: experts are merged once and used while nothing changes.

Where all tokens share their weights, the merged experts go into a copy of the layer's weight: it
costs memory and no time. In half precision that would round small changes away, so that the merged
factors are kept beside the weight; so are averages of factors that differ between sequences.

Axes: as in ``crossroads.adapters.contract``; R the rank of the merged adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import LoRA, ModuleBank
from crossroads.adapters.base_layers import is_conv1d
from crossroads.adapters.combine import Factors, averaged, concatenated
from crossroads.adapters.contract import Routing
from crossroads.adapters.kernels import identity

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Merged experts: a whole weight or factors, and what they were made of."""

    key: tuple[Any, ...]
    given: tuple[Tensor | None, Tensor | None]  # weights and index as the router gave them
    weights: Tensor | None
    made: Tensor | Factors


class Static:
    """What one layer keeps between calls of a router whose weights do not vary over tokens."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def forward(
        self, x_BTI: Tensor, base: nn.Module, bank: ModuleBank, routing: Routing
    ) -> Tensor | None:
        """Return the layer's output with the experts in, (B, T, O); None where nothing is merged.

        That is where a mix differs between the sequences of the call, which merging does not make
        cheaper, where the base's own output has a weight, and where something that would be merged
        is being trained.
        """
        parts = (base.weight, bank.a_ERI, bank.b_EOR, bank.scale_E)
        if routing.base is not None or _is_trained(*parts, routing.weights):
            return None
        key = (routing.mode, _is_plain(base), *map(identity, parts))
        kept = self._kept
        if kept is not None and kept.key == key:
            # First as given: a step of decoding has few operations to spend on a layer.
            weights, index = kept.given
            if _are_equal(weights, routing.weights) and _are_equal(index, routing.index):
                return _applied(x_BTI, base, kept.made)
        weights = routing.dense(bank.n_experts)
        if len(weights) > 1 and bool((weights == weights[:1]).all()):
            weights = weights[:1]
        if weights.shape[1] != 1 or (len(weights) > 1 and routing.mode != "merge_factors"):
            return None
        given = (routing.weights.clone(), _copied(routing.index))
        if kept is not None and kept.key == key and _are_equal(kept.weights, weights):
            made = kept.made
        else:
            made = _merged(base, bank, weights, routing)
        weights = given[0] if weights is routing.weights else weights.clone()
        self._kept = _Kept(key, given, weights, made)
        return _applied(x_BTI, base, made)

    def forward_one(self, x_BTI: Tensor, base: nn.Module, one: LoRA) -> Tensor:
        """Return the layer's output with one adapter in, whatever the routing."""
        key = (id(one), _is_plain(base), identity(base.weight))
        kept = self._kept
        if kept is None or kept.key != key:
            kept = self._kept = _Kept(key, (None, None), None, _whole(base, Factors.of(one)))
        return _applied(x_BTI, base, kept.made)


def weight_OI(base: nn.Module) -> Tensor | None:
    """Return a layer's weight as (outputs, inputs), where it is all that the layer computes with.

    None for layers with a product of their own or hooks, and for weights that are no floats.
    """
    weight: Tensor = base.weight
    if not _is_plain(base) or not weight.is_floating_point():
        return None
    return weight.T if is_conv1d(base) else weight


def _is_plain(base: nn.Module) -> bool:
    """Return whether a layer's output is the product with its weight, plus its bias."""
    if base._forward_hooks or base._forward_pre_hooks:
        return False
    return type(base).forward is nn.Linear.forward or is_conv1d(base)


@torch.no_grad()
def _merged(
    base: nn.Module, bank: ModuleBank, weights: Tensor, routing: Routing
) -> Tensor | Factors:
    with torch.inference_mode(False):  # what is kept may serve a pass with gradient later
        if routing.mode == "merge_factors":
            made = averaged(bank, weights)
        else:
            made = Factors.of(concatenated(bank, weights[0, 0, 0]))
        return made if len(weights) > 1 else _whole(base, made)


@torch.no_grad()
def _whole(base: nn.Module, made: Factors) -> Tensor | Factors:
    with torch.inference_mode(False):
        before_OI = weight_OI(base)
        if before_OI is None or before_OI.dtype in _HALF:
            return made
        a_RI, b_OR = made.a_BRI[0], made.b_BOR[0]
        return torch.addmm(
            before_OI, (made.scale * b_OR).to(before_OI.dtype), a_RI.to(before_OI.dtype)
        )


def _applied(x_BTI: Tensor, base: nn.Module, made: Tensor | Factors) -> Tensor:
    if isinstance(made, Tensor):
        return nn.functional.linear(x_BTI, made, base.bias)
    y_BTO: Tensor = base(x_BTI)
    return y_BTO + made(x_BTI).to(y_BTO.dtype)


def _is_trained(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _are_equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one, other)  # False for other shapes


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
