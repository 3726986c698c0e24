"""Soft MoE: experts see weighted mixtures of all tokens, and tokens mix all slots.

Source: From Sparse to Soft Mixtures of Experts (2023), as studied in Routers in Vision Mixture of
Experts (2024). Experts get mixtures of the tokens as they are; only the logits see them
normalised. No noise, no capacity, no loss. Every token sees every other: never causal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossroads.core import gating
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
from crossroads.moe.router import grouped, opened


class Soft(Router):
    """Dispatch softmax over tokens, combine softmax over all slots.

    l[s,e,c] = scale * <x_s / |x_s|, mu[e,c] / |mu[e,c]|>,
    dispatch = softmax_s(l), combine = softmax_(e,c)(l).

    Parameters
    ----------
    d : width of the tokens
    n_experts : E
    slots : C, slots per expert; None = round(tokens * cf / E), or 1 without ``tokens``
    tokens : nominal length of a sequence, from which C is computed once
    cf : capacity factor: slots per token
    scale_init : first value of the learned scale
    kinds : of the experts

    Slots are parameters, so C does not change with padding. ``logit_bias`` moves the combine
    weights only: a constant over tokens cancels in the dispatch.
    """

    name = "soft"
    causal_safe = False
    per_token = False

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
        self.d = d
        self.slots = slots
        self.active = 1.0 if tokens is None else slots * n_experts / tokens
        self.mu_DEC = nn.Parameter(torch.randn(d, n_experts, slots) * d**-0.5)
        self.scale = nn.Parameter(torch.tensor(float(scale_init)))

    def score(self, inp: RouterInput) -> Tensor:
        """Return logits of all slots, (N, E * C)."""
        x_ND = _unit(gating.at_least_float32(inp.x_ND), dim=1)
        mu_DEC = _unit(self.mu_DEC.to(x_ND.dtype), dim=0)
        return self.scale.to(x_ND.dtype) * (x_ND @ mu_DEC.flatten(1))

    def decide(self, inp: RouterInput) -> RouterOutput:
        batch, length = inp.mask_BT.shape
        if inp.force_BT is not None and inp.training and bool((inp.force_BT >= 0).any()):
            raise InputError(
                "force: soft routing runs every expert for every token; leave it out or take a "
                "router that chooses"
            )
        shape = (batch, length, self.n_experts, self.slots)
        logits_GSF = self._opened(self.score(inp).reshape(batch, length, -1), inp)
        dispatch_GSF, combine_GSF = _both_softmaxes(logits_GSF, inp)
        combine_GSEC = combine_GSF.reshape(shape)
        logits_NE = torch.logsumexp(logits_GSF.reshape(-1, self.n_experts, self.slots), -1)
        decision = RoutingDecision(
            choice=Dense(dispatch_GSEC=dispatch_GSF.reshape(shape), combine_GSEC=combine_GSEC),
            n_experts=self.n_experts,
            shape=(batch, length),
            mask_N=inp.mask_N,
            logits_NE=logits_NE,
            probs_NE=combine_GSEC.sum(-1).reshape(-1, self.n_experts),
            weights="normalised",
        )
        return RouterOutput(decision=decision, carry=inp.carry or {})

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


def _both_softmaxes(logits_GSF: Tensor, inp: RouterInput) -> tuple[Tensor, Tensor]:
    """Return softmaxes over tokens and over slots, zeros at padding and forbidden experts."""
    if inp.allow is None and bool(inp.mask_BT.all()):
        # No slice is closed: the plain softmax saves several passes over G * S * E * C numbers.
        return torch.softmax(logits_GSF, 1), torch.softmax(logits_GSF, 2)
    real_GS1 = inp.mask_BT.unsqueeze(-1)
    dispatch_GSF = gating.softmax(logits_GSF.masked_fill(~real_GS1, -torch.inf), dim=1)
    return dispatch_GSF, torch.where(real_GS1, gating.softmax(logits_GSF), 0.0)


def _unit(x: Tensor, dim: int) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim, keepdim=True) + 1e-6)
