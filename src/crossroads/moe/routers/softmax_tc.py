"""Softmax token choice, the router of V-MoE: noisy top-k with importance and load losses.

Sources: Routers in Vision Mixture of Experts (2024), softmax token choice; V-MoE (2021),
appendix A. The published recipe trains with ``Capacity(factor=1.05, eval_factor=4.0, multiple=4)``
over groups of several images; here nothing is dropped unless a capacity is given, and losses are
computed sequence by sequence.
"""

from __future__ import annotations

from typing import Any

from crossroads.core import gating, losses
from crossroads.core.errors import UsageError
from crossroads.core.routed import AuxTerm
from crossroads.moe.checks import check_coefficients
from crossroads.moe.contract import RouterInput
from crossroads.moe.router import NoiseScale, Scored, TokenChoiceRouter, grouped


class SoftmaxTokenChoice(TokenChoiceRouter):
    """Top-k of p = softmax(z + noise), weight p, not renormalised.

    Parameters
    ----------
    importance : coefficient of CV^2 of the summed clean probabilities
    load : coefficient of CV^2 of the chance of being chosen; it needs noise: 0 without
    settings : of ``TokenChoiceRouter``; noise of standard deviation 1 / E, no Switch loss
    """

    name = "softmax-tc"
    system = "vision-moe"

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        importance: float = 0.005,
        load: float = 0.005,
        noise_std: float = 1.0,
        noise_scale: NoiseScale = "per_expert",
        balance: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(
            d,
            n_experts,
            noise_std=noise_std,
            noise_scale=noise_scale,
            balance=balance,
            **settings,
        )
        check_coefficients(importance=importance, load=load)
        if load and not self.sigma:
            raise UsageError(
                f"load: the chance of being chosen needs noise, got load {load} and noise_std "
                f"{noise_std}; set load=0 as well"
            )
        self.importance = importance
        self.load = load

    def losses(self, scored: Scored, inp: RouterInput) -> dict[str, AuxTerm]:
        terms = super().losses(scored, inp)
        clean_GSE, group = grouped(scored.clean_NE, inp), self.process_group
        if self.importance:
            value = losses.importance(gating.softmax(clean_GSE), inp.mask_BT, group=group)
            terms["importance"] = AuxTerm(value, self.importance)
        if self.load:
            noisy_GSE = grouped(scored.logits_NE, inp)
            value = losses.load(clean_GSE, noisy_GSE, inp.mask_BT, self.k, self.sigma, group=group)
            terms["load"] = AuxTerm(value, self.load)
        return terms
