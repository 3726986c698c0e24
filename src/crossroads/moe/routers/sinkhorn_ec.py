"""Sinkhorn expert choice: experts rank tokens by a balanced transport plan.

Source: Routers in Vision Mixture of Experts (2024), Sinkhorn expert choice. Plan and weight both
come from the noisy logits; no gradient passes the plan.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossroads.core.transport import check_sinkhorn, sinkhorn_plan
from crossroads.moe.contract import RouterInput
from crossroads.moe.expert_choice import ExpertChoiceRouter


class SinkhornExpertChoice(ExpertChoiceRouter):
    """Top-C tokens per column of the entropic plan; weight softmax_e(z + noise).

    Parameters
    ----------
    eps : weight of the plan's entropy
    iters : rows-then-columns iterations
    settings : of ``ExpertChoiceRouter``
    """

    name = "sinkhorn-ec"
    system = "vision-moe"

    def __init__(
        self, d: int, n_experts: int, *, eps: float = 1.0, iters: int = 20, **settings: Any
    ) -> None:
        check_sinkhorn(eps, iters)
        super().__init__(d, n_experts, **settings)
        self.eps = eps
        self.iters = iters

    @torch.no_grad()
    def affinity(
        self, logits_GSE: Tensor, probs_GSE: Tensor, slots_G: Tensor, inp: RouterInput
    ) -> Tensor:
        return sinkhorn_plan(logits_GSE, inp.mask_BT, eps=self.eps, iters=self.iters)
