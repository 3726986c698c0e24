"""Sparsity-constrained expert choice: a quadratic transport plan with at most C tokens a column.

Source: Routers in Vision Mixture of Experts (2024) with the solver of Sparsity-Constrained Optimal
Transport (2023): Adam on the semi-dual, similarity softmax_e(z). The reference also dispatches
entries of a column that are exactly 0; here such slots stay empty unless ``drop_zero_plan`` is off.
At the usual size (C = S / E) some tokens stay unserved: the relaxed dual has no exact primal.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from crossroads.core.transport import check_sparse, sparse_plan
from crossroads.moe.contract import RouterInput
from crossroads.moe.expert_choice import ExpertChoiceRouter


class SparseExpertChoice(ExpertChoiceRouter):
    """Top-C tokens per column of the C-sparse plan; weight softmax_e(z). No noise.

    Parameters
    ----------
    gamma : weight of the plan's squared norm
    inner_lr, inner_iters : of Adam on the semi-dual
    drop_zero_plan : leave a slot empty where the plan has no mass
    settings : of ``ExpertChoiceRouter``
    """

    name = "sparse-ec"
    system = "vision-moe"
    default_noise: ClassVar[float] = 0.0

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        gamma: float = 1.0,
        inner_lr: float = 1e-2,
        inner_iters: int = 20,
        drop_zero_plan: bool = True,
        **settings: Any,
    ) -> None:
        check_sparse(gamma, inner_lr, inner_iters)
        super().__init__(d, n_experts, **settings)
        self.gamma = gamma
        self.inner_lr = inner_lr
        self.inner_iters = inner_iters
        self.drop_zero_plan = drop_zero_plan

    @torch.no_grad()
    def affinity(
        self, logits_GSE: Tensor, probs_GSE: Tensor, slots_G: Tensor, inp: RouterInput
    ) -> Tensor:
        closed_GSE = torch.isneginf(logits_GSE)
        plan_GSE, _ = sparse_plan(
            (-probs_GSE).masked_fill(closed_GSE, torch.inf),
            inp.mask_BT,
            k=slots_G,
            gamma=self.gamma,
            lr=self.inner_lr,
            iters=self.inner_iters,
        )
        return plan_GSE.masked_fill(plan_GSE == 0, -torch.inf) if self.drop_zero_plan else plan_GSE
