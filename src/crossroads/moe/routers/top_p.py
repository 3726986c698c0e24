"""Top-p routing: as many experts as it takes to hold a share p of the probability.

A confident token runs one expert, an undecided one several. Source: Harder Tasks Need More
Experts: Dynamic Routing in MoE Models (2024). Choices made here: coefficients of the
losses 1e-2 and 1e-4, counts of the balance loss per token (``f_norm="picks"`` is the other
convention), a sum that exceeds p where the paper writes at least p (the same unless a sum equals
p). The paper has neither the cap ``k_max`` nor the controller ``target``.

Axes: N tokens, E experts, K places per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from crossroads.core import gating, losses
from crossroads.core.errors import UsageError
from crossroads.core.routed import AuxTerm
from crossroads.moe.capacity import Capacity
from crossroads.moe.checks import check_coefficients, check_positive
from crossroads.moe.contract import NOBODY, RouterInput, RouterOutput
from crossroads.moe.router import Scored, TokenChoiceRouter


class TopP(TokenChoiceRouter):
    """The smallest set of best experts whose probability exceeds p: y = sum_{e in S} P_e f_e(x).

    Weights are not renormalised; they sum to more than ``p`` unless ``k_max`` cut the set.

    Raises UsageError for settings out of range.

    Parameters
    ----------
    d, n_experts : width of the tokens, number of experts
    p : share of probability the chosen must exceed; 0 is top-1, 1 and more takes all experts
    k_max : most experts of a token, None = all
    entropy : coefficient of the mean entropy of a token's probabilities, in nats; without it the
        router can raise the entropy to recruit every expert
    target : mean experts per token to hold by moving p; None = p stays. Each optimiser step moves
        it by ``p_step`` towards the target, within [0, 1]; the number of steps taken is state
    p_step : size of such a step
    expected : experts a token is assumed to run when experts are sized for equal compute; the
        true number is the router's to learn
    renorm, noise_std, balance, f_norm, z_loss, capacity : as in ``TokenChoiceRouter``
    """

    name = "top-p"
    system = "dynamic-moe"

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        p: float = 0.4,
        k_max: int | None = None,
        entropy: float = 1e-4,
        target: float | None = None,
        p_step: float = 0.002,
        expected: float = 2.0,
        renorm: bool | None = None,
        noise_std: float = 0.0,
        balance: float = 0.01,
        f_norm: losses.Normalisation = "tokens",
        z_loss: float = 0.0,
        capacity: Capacity | float | None = None,
    ) -> None:
        if math.isnan(p) or p < 0:
            raise UsageError(f"p: expected 0 or more (a share of probability), got {p}")
        check_coefficients(entropy=entropy, p_step=p_step)
        check_positive(expected=expected)
        if k_max is not None and not 1 <= k_max <= n_experts:
            raise UsageError(f"k_max: expected 1 to {n_experts} (the experts), got {k_max}")
        if target is not None and not 1.0 <= target <= n_experts:
            raise UsageError(f"target: expected 1 to {n_experts} experts per token, got {target}")
        if target is not None and p > 1:
            raise UsageError(f"p: expected at most 1 where target moves it, got {p}")
        super().__init__(
            d,
            n_experts,
            k=n_experts if k_max is None else k_max,
            renorm=renorm,
            noise_std=noise_std,
            balance=balance,
            f_norm=f_norm,
            z_loss=z_loss,
            capacity=capacity,
        )
        self.p = p
        self.entropy = entropy
        self.target = target
        self.p_step = p_step
        self.expected = expected if target is None else target
        # Whole steps, since a cast of the model to half precision would round p itself.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def current_p(self) -> float:
        """The share of probability in use: ``p``, moved by the controller where there is one."""
        if self.target is None:
            return self.p
        return min(max(self.p + self.p_step * int(self.steps), 0.0), 1.0)

    def select(self, probs_NE: Tensor, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        idx_NE, keep_NE = gating.top_p(probs_NE, self.current_p, self.k)
        return torch.where(keep_NE, idx_NE, NOBODY)[:, : self.k]

    def losses(self, scored: Scored, inp: RouterInput) -> dict[str, AuxTerm]:
        terms = super().losses(scored, inp)
        if self.entropy:
            value = losses.token_entropy(scored.probs_NE, scored.mask_N)
            terms["entropy"] = AuxTerm(value, self.entropy)
        return terms

    def decide(self, inp: RouterInput) -> RouterOutput:
        answer = super().decide(inp)
        stats = {**answer.decision.stats, "tokens": inp.mask_N.sum().to(torch.float32)}
        return replace(answer, decision=replace(answer.decision, stats=stats))

    @torch.no_grad()
    def commit(self, stats: Mapping[str, Tensor], new_state: Mapping[str, Tensor]) -> None:
        if self.target is None or not float(stats["tokens"]):
            return
        mean = float(stats["count_E"].sum() / stats["tokens"])
        wanted = (self.target > mean) - (self.target < mean)
        if 0.0 <= self.p + self.p_step * (int(self.steps) + wanted) <= 1.0:
            self.steps += wanted

    @property
    def nominal_active(self) -> float:
        """The assumed number of experts per token, at most the places there are."""
        return min(self.expected, float(self.k))
