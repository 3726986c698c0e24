"""Auxiliary losses of routers, of layers of experts and banks of adapters alike.

``f_e`` is the share of picks that went to expert e, counted before capacity; ``P_e`` is the mean
probability of expert e. Rows of padding have ``idx = -1`` and are masked out of every mean.

Axes: N tokens, E experts, K places, G groups.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from crossroads.core.gating import at_least_float32, entropy, squared_cv

Normalisation = Literal["picks", "tokens"]


def pick_counts(idx_NK: Tensor, n_experts: int) -> Tensor:
    """Return how often each expert was picked, float32 (E,), empty places left out."""
    # Counted one up, so that empty places (-1) have a count of their own and need no selection.
    count = torch.bincount((idx_NK + 1).reshape(-1), minlength=n_experts + 1)
    return count[1:].to(torch.float32)


def summed_over_ranks(count: Tensor, group: Any = None) -> Tensor:
    """Return counts summed over the ranks of a process group; unchanged without one.

    Where they carry gradient, every rank's reaches all, and all ranks must run backward.
    """
    if group is None:
        return count
    total: Tensor = _Summed.apply(count, group)
    return total


class _Summed(torch.autograd.Function):
    """A sum over ranks; so is its gradient, for every rank's loss depends on every rank's part."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = mine.clone(memory_format=torch.contiguous_format)  # alike in memory on all ranks
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return summed_over_ranks(grads[0], ctx.group), None


def share_of_ranks(mean: Tensor, n: int | Tensor, mask: Tensor, group: Any = None) -> Tensor:
    """Return this rank's mean over ``n`` things as its part of a mean weighted by real tokens.

    Averaged so over ranks it is the mean over the things (sequences, say) of all ranks, however
    many tokens each has. ``mask`` are this rank's tokens. Unchanged without a process group.
    """
    if group is None:
        return mean
    mine = torch.stack([torch.as_tensor(n, device=mask.device), mask.sum()]).to(torch.float32)
    n_all, tokens_all = summed_over_ranks(mine, group)
    return mean * (mine[0] / n_all.clamp_min(1)) * (tokens_all / mine[1].clamp_min(1))


def masked_mean(values_N: Tensor, mask_N: Tensor) -> Tensor:
    """Return the mean over real rows (axis 0), 0 where there are none."""
    weight = mask_N.to(values_N.dtype)
    if values_N.ndim > 1:
        weight = weight.unsqueeze(-1)
    # where() and not a product alone: padding may hold infinities.
    kept = torch.where(weight > 0, values_N, torch.zeros_like(values_N))
    return kept.sum(0) / mask_N.sum().clamp_min(1)


def switch_balance(
    probs_NE: Tensor,
    idx_NK: Tensor,
    mask_N: Tensor,
    *,
    f_norm: Normalisation = "picks",
    group: Any = None,
) -> Tensor:
    """Return E * sum_e f_e P_e: exactly 1 whenever f or P is uniform, and not bounded by 1.

    ``f_norm="tokens"`` divides the counts by tokens instead of picks, so that f sums to the mean
    number of experts per token (the convention of Mixtral in Hugging Face, and of Dynamic MoE).
    Source: Switch Transformer (2021), eq. 4.
    """
    n_experts = probs_NE.shape[-1]
    count_E = summed_over_ranks(pick_counts(idx_NK, n_experts), group)
    total = count_E.sum() if f_norm == "picks" else summed_over_ranks(mask_N.sum().float(), group)
    f_E = count_E / total.clamp_min(1)
    return n_experts * (f_E * masked_mean(at_least_float32(probs_NE), mask_N)).sum()


def z_loss(logits_NE: Tensor, mask_N: Tensor) -> Tensor:
    """Return the mean squared logsumexp of clean logits. Source: ST-MoE (2022), eq. 5."""
    return masked_mean(torch.logsumexp(at_least_float32(logits_NE), -1).square(), mask_N)


def importance(probs_GSE: Tensor, mask_GS: Tensor, *, group: Any = None) -> Tensor:
    """Return the squared CV of the summed probabilities, group by group, averaged.

    Source: Shazeer et al. (2017), eq. 7, as V-MoE uses it: on clean probabilities.
    """
    kept = torch.where(mask_GS.unsqueeze(-1), probs_GSE, torch.zeros_like(probs_GSE))
    return share_of_ranks(squared_cv(kept.sum(1)).mean(), len(mask_GS), mask_GS, group)


def load(
    logits_GSE: Tensor,
    noisy_GSE: Tensor,
    mask_GS: Tensor,
    k: int,
    sigma: float,
    *,
    group: Any = None,
) -> Tensor:
    """Return the squared CV of the probability of being among the top k under fresh noise.

    ``sigma`` is the standard deviation of the noise in ``noisy_GSE``; gradient flows through the
    threshold too. Source: V-MoE (2021), appendix A.
    """
    threshold = torch.topk(noisy_GSE, k, dim=-1).values[..., -1:]
    # Finite where fewer than k experts are allowed: -inf - -inf is no number.
    threshold = threshold.clamp_min(torch.finfo(threshold.dtype).min)
    chance = torch.special.ndtr((logits_GSE - threshold) / sigma)
    kept = torch.where(mask_GS.unsqueeze(-1), chance, torch.zeros_like(chance))
    value = squared_cv(kept.sum(1) / mask_GS.sum(1, keepdim=True).clamp_min(1)).mean()
    return share_of_ranks(value, len(mask_GS), mask_GS, group)


def token_entropy(probs_NE: Tensor, mask_N: Tensor) -> Tensor:
    """Return the mean entropy of a token's probabilities, in nats (Dynamic MoE minimises it)."""
    return masked_mean(entropy(probs_NE), mask_N)


def batch_entropy(probs_NE: Tensor, mask_N: Tensor) -> Tensor:
    """Return the entropy of the mean probabilities, in nats (regularisers maximise it)."""
    return entropy(masked_mean(at_least_float32(probs_NE), mask_N))


def sequence_balance(
    scores_BTE: Tensor, idx_BTK: Tensor, mask_BT: Tensor, *, group: Any = None
) -> Tensor:
    """Return the mean over sequences of sum_e f_e P_e, f_e = E / (K T) * count.

    Scores are normalised row by row first. Source: DeepSeek-V3 (2024), eq. 17-20.
    """
    n_experts = scores_BTE.shape[-1]
    share_BTE = scores_BTE / scores_BTE.sum(-1, keepdim=True).clamp_min(1e-20)
    real_BT1 = mask_BT.unsqueeze(-1)
    picked_BTE = torch.zeros_like(share_BTE).scatter_add(
        -1, idx_BTK.clamp_min(0), (idx_BTK >= 0).to(share_BTE.dtype)
    )
    count_BE = torch.where(real_BT1, picked_BTE, torch.zeros_like(picked_BTE)).sum(1)
    f_BE = n_experts * count_BE / count_BE.sum(-1, keepdim=True).clamp_min(1)
    tokens_B1 = mask_BT.sum(1, keepdim=True).clamp_min(1)
    p_BE = torch.where(real_BT1, share_BTE, torch.zeros_like(share_BTE)).sum(1) / tokens_B1
    value = (f_BE.detach() * p_BE).sum(-1).mean()
    return share_of_ranks(value, len(mask_BT), mask_BT, group)
