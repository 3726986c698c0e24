"""Softmax expert choice: experts rank tokens by the softmax over experts.

Source: Routers in Vision Mixture of Experts (2024), softmax expert choice; Expert Choice routing
(2022) for the idea. The softmax runs over experts, and each column picks.
"""

from __future__ import annotations

from torch import Tensor

from crossroads.moe.contract import RouterInput
from crossroads.moe.expert_choice import ExpertChoiceRouter


class SoftmaxExpertChoice(ExpertChoiceRouter):
    """Top-C tokens per column of p = softmax_e(z + noise); weight p. With cf = E the layer is the
    dense mixture of all experts."""

    name = "softmax-ec"
    system = "vision-moe"

    def affinity(
        self, logits_GSE: Tensor, probs_GSE: Tensor, slots_G: Tensor, inp: RouterInput
    ) -> Tensor:
        return probs_GSE
