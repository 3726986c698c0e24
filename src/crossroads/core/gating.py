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
_HANDFUL = 4096  # scores up to which the number of operations is what costs, not their size


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32; float32 and float64 stay what they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """Return the softmax in float32 at least; a slice that is -inf throughout becomes zeros."""
    logits = at_least_float32(logits)
    if _is_handful(logits) and not (torch.is_grad_enabled() and logits.requires_grad):
        shares = torch.softmax(logits, dim)
        if not math.isnan(shares.sum().item()):  # else a slice without any, or a NaN
            return shares
    # Spelt out: torch's kernel takes six times as long on rows shorter than a vector register, and
    # its gradient over -inf alone is NaN, not zero.
    highest = logits.detach().amax(dim, keepdim=True)
    odds = torch.exp(logits - highest.clamp_min(torch.finfo(logits.dtype).min))
    # One of the odds is exp(0), so a total below 1 is that of a slice without any.
    return odds / odds.sum(dim, keepdim=True).clamp_min(1.0)


def top_k(scores: Tensor, k: int, dim: int = -1) -> Tensor:
    """Return the indices of the k largest entries along ``dim``, largest first, ties to the lower.

    Raises InputError when ``k`` is not between 1 and the length of ``dim``.
    """
    length = scores.shape[dim]
    if not 1 <= k <= length:
        raise InputError(f"k: expected between 1 and {length} (the number of choices), got {k}")
    if k <= _FEW and dim in (-1, scores.ndim - 1) and scores.is_floating_point():
        return _first_maxima(scores.detach(), k)
    order = torch.argsort(scores, dim=dim, descending=True, stable=True)
    return order.narrow(dim, 0, k)


def first_maximum(scores: Tensor) -> Tensor:
    """Return the index of the largest entry of the last axis, the lowest one among equals."""
    return scores.max(-1).indices  # torch promises the first among equals


def _first_maxima(scores: Tensor, k: int) -> Tensor:
    """Return the k largest entries of the last axis one after the other, as ``top_k`` does."""
    if k > 1 and _is_handful(scores):
        # One more than asked for: without equals among them, the order is no matter of taste.
        best = scores.topk(min(k + 1, scores.shape[-1]), -1)
        if bool((best.values[..., :-1] > best.values[..., 1:]).all()):
            return best.indices[..., :k]
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


def _is_handful(scores: Tensor) -> bool:
    """Return whether waiting for a number from them costs less than a few operations."""
    if torch.compiler.is_compiling() or scores.device.type != "cpu":
        return False
    return 0 < scores.numel() <= _HANDFUL


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
