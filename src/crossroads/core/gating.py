"""Normalisers and selections on tensors, shared by layers of experts and banks of adapters.

Everything here is a function of its arguments: stable (ties go to the lower index, so results do
not depend on the number of threads) and computed in float32 at least.

Axes: N tokens, E experts, K places per token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crossroads.core.errors import InputError

_FEW = 3  # places up to which repeated maxima are faster than a sort
_SCANT = 4096  # numbers up to which operations cost by their count, not by their size


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32; float32 and float64 stay what they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """Return the softmax in float32 at least; a slice that is -inf throughout becomes zeros."""
    logits = at_least_float32(logits)
    if is_scant(logits):
        none_is_open = torch.isneginf(logits).all(dim, keepdim=True)
        return torch.softmax(logits, dim).masked_fill(none_is_open, 0.0)
    # Spelt out: many rows shorter than a vector register take torch's kernel up to six times as
    # long, and its gradient over -inf alone is NaN, not zero.
    highest = logits.detach().amax(dim, keepdim=True)
    odds = torch.exp(logits - highest.clamp_min(torch.finfo(logits.dtype).min))
    # One of the odds is exp(0), so a total below 1 is that of a slice without any.
    return odds / odds.sum(dim, keepdim=True).clamp_min(1.0)


def is_scant(values: Tensor) -> bool:
    """Return whether the fewest operations are the fastest way: few numbers, and no gradient."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and values.requires_grad):
        return False
    return values.numel() <= _SCANT


def top_k(scores: Tensor, k: int, dim: int = -1) -> Tensor:
    """Return the indices of the k largest entries along ``dim``, largest first, ties to the lower.

    Raises InputError when ``k`` is not between 1 and the length of ``dim``.
    """
    length = scores.shape[dim]
    if not 1 <= k <= length:
        raise InputError(f"k: expected between 1 and {length} (the number of choices), got {k}")
    scores = scores.detach()
    is_short = k == 1 or (k <= _FEW and not is_scant(scores))
    if is_short and dim in (-1, scores.ndim - 1) and scores.is_floating_point():
        return _first_maxima(scores, k)
    order = torch.argsort(scores, dim=dim, descending=True, stable=True)
    return order.narrow(dim, 0, k).contiguous()


def first_maximum(scores: Tensor) -> Tensor:
    """Return the index of the largest entry of the last axis, the lowest one among equals."""
    return scores.max(-1).indices  # torch promises the first among equals


def _first_maxima(scores: Tensor, k: int) -> Tensor:
    """Return the k largest entries of the last axis one after the other, as ``top_k`` does."""
    best = scores.max(-1, keepdim=True).indices  # torch promises the first among equals
    if k == 1:
        return best
    # What is taken must stay below what is left, also where that is -inf.
    left = scores.clamp_min(torch.finfo(scores.dtype).min)
    taken = [best]
    for _ in range(k - 1):
        left = left.scatter(-1, taken[-1], -torch.inf)
        taken.append(left.max(-1, keepdim=True).indices)
    return torch.cat(taken, -1)


def top_p(probs_NE: Tensor, p: float, k_max: int | None = None) -> tuple[Tensor, Tensor]:
    """Return experts in descending order and which of them the smallest prefix above p holds.

    ``idx`` is (N, E) int64, ``keep`` (N, E) bool: the first t places, t the smallest count whose
    cumulative probability is strictly greater than ``p``; all places when no prefix exceeds it or
    ``p >= 1``. ``k_max`` caps t. Source: Harder Tasks Need More Experts (2024), section 3.
    """
    probs_NE = at_least_float32(probs_NE)
    idx_NE = torch.argsort(probs_NE, dim=-1, descending=True, stable=True)
    n_experts = probs_NE.shape[-1]
    place_E = torch.arange(n_experts, device=probs_NE.device)
    if p >= 1.0:
        keep_NE = torch.ones_like(idx_NE, dtype=torch.bool)
    else:
        before_NE = probs_NE.gather(-1, idx_NE).cumsum(-1).roll(1, -1)
        before_NE[..., 0] = -1.0  # the first expert is always in
        keep_NE = before_NE <= p
    if k_max is not None:
        keep_NE = keep_NE & (place_E < k_max)
    return idx_NE, keep_NE


def entropy(probs: Tensor) -> Tensor:
    """Return -sum p log p over the last axis, in nats; 0 log 0 is 0, and so is its gradient."""
    probs = at_least_float32(probs)
    # At 0 the slope is infinite, and times the softmax's own 0 it would be NaN.
    return torch.special.entr(probs.masked_fill(probs == 0, 1.0)).sum(-1)


def squared_cv(values: Tensor) -> Tensor:
    """Return the squared coefficient of variation (population) over the last axis; 0 for zeros."""
    values = at_least_float32(values)
    mean = values.mean(-1)
    variance = values.var(-1, unbiased=False)
    return torch.where(mean == 0, torch.zeros_like(mean), variance / mean.square().clamp_min(1e-30))


def tsallis_entropy(probs: Tensor, q: float, *, n: int | None = None) -> Tensor:
    """Return the Tsallis entropy of order q of the last axis, over its value for n equal shares.

    0 for one certain choice, 1 for ``n`` choices alike (default: the length of the axis); Shannon's
    at q = 1. Probabilities are clamped below at 1e-9. Source: DynMoLE (2025), with its constant.
    """
    probs = at_least_float32(probs).clamp_min(1e-9)
    n = probs.shape[-1] if n is None else n
    if n == 1:
        return probs.new_zeros(probs.shape[:-1])
    if abs(q - 1) < 1e-6:
        return entropy(probs) / math.log(n)
    return (1 - probs.pow(q).sum(-1)) / (1 - n ** (1 - q))


def renyi_entropy(probs: Tensor, order: float, *, n: int | None = None) -> Tensor:
    """Return the Renyi entropy of the last axis over ln n, as ``tsallis_entropy`` does."""
    probs = at_least_float32(probs).clamp_min(1e-9)
    n = probs.shape[-1] if n is None else n
    if n == 1:
        return probs.new_zeros(probs.shape[:-1])
    if abs(order - 1) < 1e-6:
        return entropy(probs) / math.log(n)
    return probs.pow(order).sum(-1).log() / ((1 - order) * math.log(n))
