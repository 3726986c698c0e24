"""Sigmoid gates: every expert is scored on its own, without competing for probability.

Source: the scores of DeepSeek-V3 (2024), eq. 12-15, and of Megatron's sigmoid routers. With one
expert per token the weight is the score itself: divided by its own sum it would be the constant 1,
and the gate would get no gradient from the task.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossroads.core import gating
from crossroads.core.routed import AuxTerm
from crossroads.moe.contract import RouterInput, RouterOutput
from crossroads.moe.router import Scored, TokenChoiceRouter


def shares(scores_NE: Tensor) -> Tensor:
    """Return scores divided by their sum over experts; zeros where all are 0."""
    return scores_NE / scores_NE.sum(-1, keepdim=True).clamp_min(1e-20)


class Sigmoid(TokenChoiceRouter):
    """Top-k of s = sigmoid(z); w = s for k = 1 and s / (sum of the chosen s) for more.

    Losses and ``probs`` of the decision use s divided by its sum over all experts. ``renorm``
    overrules the rule above.
    """

    name = "sigmoid"

    def __init__(
        self, d: int, n_experts: int, *, k: int = 1, renorm: bool | None = None, **settings: Any
    ) -> None:
        renorm = k > 1 if renorm is None else renorm
        super().__init__(d, n_experts, k=k, renorm=renorm, **settings)

    def normalise(self, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        """Return independent scores in [0, 1]."""
        return torch.sigmoid(gating.at_least_float32(logits_NE))

    def losses(self, scored: Scored, inp: RouterInput) -> dict[str, AuxTerm]:
        return super().losses(replace(scored, probs_NE=shares(scored.probs_NE)), inp)

    def decide(self, inp: RouterInput) -> RouterOutput:
        output = super().decide(inp)
        scores_NE = output.decision.probs_NE
        assert scores_NE is not None
        return replace(output, decision=replace(output.decision, probs_NE=shares(scores_NE)))
