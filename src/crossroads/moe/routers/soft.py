"""Soft MoE: experts see weighted mixtures of all tokens, and tokens mix all slots.

Source: From Sparse to Soft Mixtures of Experts (2023), as studied in Routers in Vision Mixture of
Experts (2024). Experts get mixtures of the tokens as they are; only the logits see them
normalised. No noise, no capacity, no loss. Every token sees every other: never causal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.core import gating
from crossroads.core.dispatch.once import first_order
from crossroads.core.errors import InputError, UsageError
from crossroads.moe.capacity import Capacity
from crossroads.moe.contract import (
    Dense,
    ExpertKind,
    Router,
    RouterInput,
    RouterOutput,
    RoutingDecision,
)
from crossroads.moe.router import check_finite, grouped, opened

MODERATE = 30.0  # scale up to which exp and the sums of it are far from the ends of float32


class Soft(Router):
    """Dispatch softmax over tokens, combine softmax over all slots.

    l[s,e,c] = scale * <x_s / |x_s|, mu[e,c] / |mu[e,c]|>,
    dispatch = softmax_s(l), combine = softmax_(e,c)(l).

    Slots are parameters, so C does not change with padding. ``logit_bias`` moves the combine
    weights only: a constant over tokens cancels in the dispatch.

    Parameters
    ----------
    d : width of the tokens
    n_experts : E
    slots : C, slots per expert; None = round(tokens * cf / E), or 1 without ``tokens``
    tokens : nominal length of a sequence, from which C is computed once
    cf : capacity factor: slots per token
    scale_init : first value of the learned scale
    kinds : of the experts
    """

    name = "soft"
    system = "vision-moe"
    causal_safe = False
    per_token = False
    remedy = "let tokens choose: take softmax-tc or switch"

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        slots: int | None = None,
        tokens: int | None = None,
        cf: float = 1.0,
        scale_init: float = 1.0,
        kinds: tuple[ExpertKind, ...] | None = None,
    ) -> None:
        super().__init__(n_experts, kinds)
        for label, value in (("slots", slots), ("tokens", tokens)):
            if value is not None and value < 1:
                raise UsageError(f"{label}: expected 1 or more, got {value}")
        if slots is None:
            room = Capacity(factor=cf, rounding="round")
            slots = 1 if tokens is None else room.slots(tokens, 1, n_experts, training=True)
        if not math.isfinite(scale_init):
            raise UsageError(f"scale_init: expected a finite number, got {scale_init}")
        self.d = d
        self.slots = slots
        self.active = 1.0 if tokens is None else slots * n_experts / tokens
        self.mu_DEC = nn.Parameter(torch.randn(d, n_experts, slots) * d**-0.5)
        self.scale = nn.Parameter(torch.tensor(float(scale_init)))

    def score(self, inp: RouterInput) -> Tensor:
        """Return logits of all slots, (N, E * C)."""
        x_ND = _direction(gating.at_least_float32(inp.x_ND), dim=1)
        mu_DEC = self.scale.to(x_ND.dtype) * _direction(self.mu_DEC.to(x_ND.dtype), dim=0)
        return x_ND @ mu_DEC.flatten(1)

    def decide(self, inp: RouterInput) -> RouterOutput:
        batch, length = inp.mask_BT.shape
        if inp.force_BT is not None and inp.training and bool((inp.force_BT >= 0).any()):
            raise InputError(
                "force: soft routing runs every expert for every token; leave it out or take a "
                "router that chooses"
            )
        shape = (batch, length, self.n_experts, self.slots)
        clean_GSEC = self.score(inp).reshape(shape)
        if self._is_plain(inp):
            mixed = _shared_exponentials(clean_GSEC, inp)
        else:
            opened_GSF = self._opened(clean_GSEC.flatten(2), inp)
            mixed = _both_softmaxes(opened_GSF.reshape(shape), inp)
        decision = RoutingDecision(
            choice=Dense(dispatch_GSEC=mixed.dispatch_GSEC, combine_GSEC=mixed.combine_GSEC),
            n_experts=self.n_experts,
            shape=(batch, length),
            mask_N=inp.mask_N,
            logits_NE=mixed.logits_GSE.flatten(0, 1),
            probs_NE=mixed.probs_GSE.flatten(0, 1),
            weights="normalised",
        )
        return RouterOutput(decision=decision, carry=inp.carry or {})

    def _is_plain(self, inp: RouterInput) -> bool:
        """Return whether logits are cosines times the scale, too small for exp to overflow."""
        untouched = inp.logit_bias is None and inp.allow is None
        return untouched and abs(float(self.scale.detach())) <= MODERATE

    def _opened(self, clean_GSF: Tensor, inp: RouterInput) -> Tensor:
        """Return logits with ``logit_bias`` and ``allow``, equal for all slots of an expert."""
        best_NE = clean_GSF.detach().reshape(-1, self.n_experts, self.slots).amax(-1)
        opened_NE = opened(best_NE, inp)
        if opened_NE is best_NE:
            return clean_GSF
        shift_GSE = grouped(opened_NE - best_NE, inp)
        return clean_GSF + shift_GSE.repeat_interleave(self.slots, -1)

    def router_flops(self, n_tokens: int) -> float:
        """Return the logits and the two mixtures; a group of S tokens costs S * E * C * D each."""
        return 3 * 2.0 * self.d * self.n_experts * self.slots * n_tokens

    @property
    def nominal_active(self) -> float:
        """Return slots per token, from the nominal length; 1 where none was given."""
        return self.active


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mixed:
    """Both mixtures, and what an expert's slots have together: log-sum-exp and combine weight."""

    dispatch_GSEC: Tensor
    combine_GSEC: Tensor
    logits_GSE: Tensor
    probs_GSE: Tensor


def _shared_exponentials(logits_GSEC: Tensor, inp: RouterInput) -> _Mixed:
    """Return both mixtures from one exponential, for logits that need no shift.

    Without gradients the logits are overwritten. Raises InputError where they are not finite.
    """
    padding_GS = None if bool(inp.mask_BT.all()) else ~inp.mask_BT
    *parts, total_GS = _Mixtures.apply(logits_GSEC, padding_GS)
    check_finite(total_GS.reshape(-1), inp)
    dispatch_GSEC, combine_GSEC, logits_GSE, probs_GSE = parts
    return _Mixed(
        dispatch_GSEC=dispatch_GSEC,
        combine_GSEC=combine_GSEC,
        logits_GSE=logits_GSE,
        probs_GSE=probs_GSE,
    )


class _Mixtures(torch.autograd.Function):
    """exp(l) over its sums along tokens and along slots, with the gradients of both softmaxes.

    By hand, because every step of autograd is a pass over a tensor of all tokens times all slots.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_GSEC: Tensor, padding_GS: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        # Over the logits where nobody needs them: new memory costs as much as the exponential.
        odds_GSEC = logits_GSEC.exp() if ctx.needs_input_grad[0] else logits_GSEC.exp_()
        odds_GSE = odds_GSEC.sum(3)
        total_GS = odds_GSE.sum(2)
        logits_GSE = odds_GSE.log()
        if padding_GS is not None:
            odds_GSEC.masked_fill_(padding_GS[:, :, None, None], 0.0)
            odds_GSE = odds_GSE.masked_fill(padding_GS.unsqueeze(2), 0.0)
        column_G1EC = odds_GSEC.sum(1, keepdim=True)
        # A group of padding alone has empty columns.
        dispatch_GSEC = odds_GSEC * column_G1EC.masked_fill_(column_G1EC == 0, 1.0).reciprocal_()
        share_GS1 = total_GS.reciprocal().unsqueeze(2)
        probs_GSE = odds_GSE * share_GS1
        combine_GSEC = odds_GSEC.mul_(share_GS1.unsqueeze(3))
        ctx.save_for_backward(logits_GSEC, logits_GSE, dispatch_GSEC, combine_GSEC)
        ctx.mark_non_differentiable(total_GS)
        ctx.set_materialize_grads(False)
        return dispatch_GSEC, combine_GSEC, logits_GSE, probs_GSE, total_GS

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor | None) -> tuple[Tensor, None]:
        to_dispatch, to_combine, to_logits, to_probs, _ = grads
        logits_GSEC, logits_GSE, dispatch_GSEC, combine_GSEC = saved
        grad = torch.zeros_like(logits_GSEC) if to_dispatch is None else dispatch_GSEC * to_dispatch
        if to_dispatch is not None:
            grad.addcmul_(dispatch_GSEC, grad.sum(1, keepdim=True), value=-1)
        if to_probs is not None:  # a sum of combine weights
            wide = to_probs.unsqueeze(3)
            to_combine = wide.expand_as(grad) if to_combine is None else to_combine + wide
        if to_combine is not None:
            part = combine_GSEC * to_combine
            mean_GS11 = part.sum((2, 3), keepdim=True)
            grad.add_(part).addcmul_(combine_GSEC, mean_GS11, value=-1)
        if to_logits is not None:
            within_GSEC = torch.exp(logits_GSEC - logits_GSE.unsqueeze(3))
            grad.addcmul_(within_GSEC, to_logits.unsqueeze(3))
        return grad, None


def _both_softmaxes(logits_GSEC: Tensor, inp: RouterInput) -> _Mixed:
    """Return softmaxes over tokens and over slots, zeros at padding and forbidden experts."""
    real_GS11 = inp.mask_BT[:, :, None, None]
    dispatch_GSEC = gating.softmax(logits_GSEC.masked_fill(~real_GS11, -torch.inf), dim=1)
    combine_GSF = gating.softmax(logits_GSEC.flatten(2))
    combine_GSEC = torch.where(real_GS11, combine_GSF.reshape(logits_GSEC.shape), 0.0)
    return _Mixed(
        dispatch_GSEC=dispatch_GSEC,
        combine_GSEC=combine_GSEC,
        logits_GSE=torch.logsumexp(logits_GSEC, -1),
        probs_GSE=combine_GSEC.sum(-1),
    )


def _direction(x: Tensor, dim: int) -> Tensor:
    """Return x * rsqrt(|x|^2 + 1e-6), the published norm, which bends the gradient near zero."""
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x * torch.rsqrt(length.square() + 1e-6)
