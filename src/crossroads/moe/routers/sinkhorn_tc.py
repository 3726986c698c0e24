"""Sinkhorn token choice: tokens pick from a transport plan that serves all experts equally.

Source: Routers in Vision Mixture of Experts (2024), Sinkhorn token choice (after S-BASE, 2022).
Balance comes from the column sums of the plan, so there is no auxiliary loss by default. The
reference computes its combine weights from clean logits while the plan is noisy; so does
``combine="softmax"`` here. Megatron's variant is ``combine="sigmoid"``, which skips the plan in
evaluation with ``eval_plan=False``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from crossroads.core import gating
from crossroads.core.errors import UsageError
from crossroads.core.routed import AuxTerm
from crossroads.core.transport import check_sinkhorn, sinkhorn_plan
from crossroads.moe.contract import RouterInput, RouterOutput
from crossroads.moe.router import NoiseScale, Scored, TokenChoiceRouter, grouped
from crossroads.moe.routers.sigmoid import shares

Combine = Literal["softmax", "sigmoid", "plan"]


class SinkhornTokenChoice(TokenChoiceRouter):
    """Top-k of each row of the entropic plan Q of the noisy logits.

    Parameters
    ----------
    eps : weight of the plan's entropy
    iters : rows-then-columns iterations
    combine : what weighs experts: ``softmax`` of clean logits, ``sigmoid`` of them (k = 1; softmax
        for more), or the ``plan``, with gradient through its iterations
    eval_plan : whether evaluation takes the top k of the plan, or of the logits
    settings : of ``TokenChoiceRouter``; noise of standard deviation 1 / E, no Switch loss
    """

    name = "sinkhorn-tc"
    system = "vision-moe"
    causal_safe = False
    per_token = False
    remedy = "take softmax-tc, which needs no plan of the whole sequence"

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        eps: float = 1.0,
        iters: int = 20,
        combine: Combine = "softmax",
        eval_plan: bool = True,
        noise_std: float = 1.0,
        noise_scale: NoiseScale = "per_expert",
        balance: float = 0.0,
        **settings: Any,
    ) -> None:
        if combine not in ("softmax", "sigmoid", "plan"):
            raise UsageError(f"combine: expected 'softmax', 'sigmoid' or 'plan', got {combine!r}")
        check_sinkhorn(eps, iters)
        super().__init__(
            d,
            n_experts,
            noise_std=noise_std,
            noise_scale=noise_scale,
            balance=balance,
            **settings,
        )
        self.eps = eps
        self.iters = iters
        self.combine = combine
        self.eval_plan = eval_plan

    def plan(self, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        """Return the plan of every sequence, (N, E); zeros at padding."""
        plan_GSE = sinkhorn_plan(
            grouped(logits_NE, inp), inp.mask_BT, eps=self.eps, iters=self.iters
        )
        return plan_GSE.reshape(logits_NE.shape)

    def noisy(self, clean_NE: Tensor, inp: RouterInput) -> Tensor:
        """Return clean logits unless the plan weighs; ``select`` adds the noise of its plan."""
        return super().noisy(clean_NE, inp) if self.combine == "plan" else clean_NE

    def normalise(self, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        """Return what weights are gathered from."""
        if self.combine == "plan":
            return self.plan(logits_NE, inp)
        if self._is_sigmoid:
            return torch.sigmoid(logits_NE)
        return gating.softmax(logits_NE)

    def select(self, probs_NE: Tensor, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        if not (inp.training or self.eval_plan):
            return gating.top_k(logits_NE, self.k)
        if self.combine == "plan":
            return gating.top_k(probs_NE, self.k)
        with torch.no_grad():
            return gating.top_k(self.plan(super().noisy(logits_NE, inp), inp), self.k)

    def losses(self, scored: Scored, inp: RouterInput) -> dict[str, AuxTerm]:
        return super().losses(replace(scored, probs_NE=self._shares(scored.probs_NE)), inp)

    def decide(self, inp: RouterInput) -> RouterOutput:
        output = super().decide(inp)
        probs_NE = output.decision.probs_NE
        assert probs_NE is not None
        return replace(output, decision=replace(output.decision, probs_NE=self._shares(probs_NE)))

    @property
    def _is_sigmoid(self) -> bool:
        return self.combine == "sigmoid" and self.k == 1

    def _shares(self, probs_NE: Tensor) -> Tensor:
        return shares(probs_NE) if self._is_sigmoid else probs_NE
