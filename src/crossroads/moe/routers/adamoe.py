"""AdaMoE: null experts that cost nothing let a fixed top-k choose how many experts a token runs.

``n`` true experts and ``m`` null ones compete for k places. The weights of a token are those of
its true picks, renormalised over them:

    p = softmax([W_true x; W_null x]),  S = true experts among the k largest of p
    y = sum_{e in S} p_e / (sum_{j in S} p_j) f_e(x)            (0 when S is empty)

About k n / (n + m) true experts run per token once loads are balanced: the budget. Null logits
cancel in the weights, so only the balance loss moves their rows; once it is annealed to 0 the
budget is frozen. A token with one true pick has weight 1 and trains its row through that loss only.

Source: AdaMoE: Token-Adaptive Routing with Null Experts for Mixture-of-Experts Language Models
(2024). The published Mixtral code never averages the null loads (``compat_plain_balance``). Choice
made here: the coefficient falls linearly to 0 over training.

Axes: N tokens, D width, E = n + m experts, K places per token.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from crossroads.core import losses
from crossroads.core.errors import UsageError
from crossroads.core.gating import at_least_float32
from crossroads.core.routed import AuxTerm
from crossroads.moe.contract import NOBODY, ExpertKind, RouterInput
from crossroads.moe.router import Scored, TokenChoiceRouter

Anneal = Literal["linear_to_zero", "constant"]
NullInit = Literal["default", "copy"]


class AdaMoE(TokenChoiceRouter):
    """The k best of true and null experts; ids below ``n_true`` are the true ones.

    Raises UsageError for settings out of range.

    Parameters
    ----------
    d, n_experts : width of the tokens, number of *true* experts; ``router.n_experts`` is n + m
    n_null : m, null experts; None = 2 n
    k : places per token, null picks included; None = as many as make two true experts expected
    balance : coefficient of the null-averaged balance loss at the start of training
    anneal : ``linear_to_zero`` lowers the coefficient with progress, ``constant`` keeps it
    init : ``copy`` starts null rows as copies of the true rows (for routers taken from a trained
        model, see ``copy_true_rows``), ``default`` draws them
    compat_plain_balance : balance the null experts one by one, as the published Mixtral code does
    settings : of ``TokenChoiceRouter``; null experts have no queue under a capacity
    """

    name = "adamoe"
    default_renorm = True

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        n_null: int | None = None,
        k: int | None = None,
        balance: float = 1e-3,
        anneal: Anneal = "linear_to_zero",
        init: NullInit = "default",
        compat_plain_balance: bool = False,
        **settings: Any,
    ) -> None:
        n_null = 2 * n_experts if n_null is None else n_null
        if n_experts < 1 or n_null < 0:
            raise UsageError(
                "n_experts and n_null: expected at least 1 true and 0 null experts, "
                f"got {n_experts} and {n_null}"
            )
        if anneal not in ("linear_to_zero", "constant"):
            raise UsageError(f"anneal: expected linear_to_zero or constant, got {anneal!r}")
        if init not in ("default", "copy"):
            raise UsageError(f"init: expected default or copy, got {init!r}")
        total = n_experts + n_null
        true: ExpertKind = "ffn"
        null: ExpertKind = "null"
        super().__init__(
            d,
            total,
            k=min(total, round(2 * total / n_experts)) if k is None else k,
            balance=balance,
            kinds=(true,) * n_experts + (null,) * n_null,
            **settings,
        )
        self.n_true = n_experts
        self.anneal: Anneal = anneal
        self.compat_plain_balance = compat_plain_balance
        if init == "copy":
            self.copy_true_rows()

    @torch.no_grad()
    def copy_true_rows(self) -> None:
        """Set null row i to true row i mod n, as when null experts join a trained router.

        Copies tie with their originals, and ties go to the true expert.
        """
        source = torch.arange(self.n_experts - self.n_true) % self.n_true
        self.gate.weight[self.n_true :] = self.gate.weight[source.to(self.gate.weight.device)]

    def weigh(self, probs_NE: Tensor, idx_NK: Tensor, inp: RouterInput) -> Tensor:
        is_null_NK = idx_NK >= self.n_true
        w_NK = super().weigh(probs_NE, torch.where(is_null_NK, NOBODY, idx_NK), inp)
        return torch.where(is_null_NK, 0.0, w_NK)

    def losses(self, scored: Scored, inp: RouterInput) -> dict[str, AuxTerm]:
        terms = super().losses(scored, inp)
        if "balance" not in terms:
            return terms
        value = terms["balance"].value
        if not self.compat_plain_balance:
            value = null_balance(
                scored.probs_NE,
                scored.idx_NK,
                scored.mask_N,
                n_true=self.n_true,
                f_norm=self.f_norm,
                group=self.process_group,
            )
        left = 1.0 - inp.progress if self.anneal == "linear_to_zero" else 1.0
        terms["balance"] = AuxTerm(value, self.balance * left)
        return terms

    @property
    def nominal_active(self) -> float:
        """True experts per token at balanced loads, k n / (n + m)."""
        return self.k * self.n_true / self.n_experts


def null_balance(
    probs_NE: Tensor,
    idx_NK: Tensor,
    mask_N: Tensor,
    *,
    n_true: int,
    f_norm: losses.Normalisation = "picks",
    group: object = None,
) -> Tensor:
    """Return (n + m) (sum_true f_i P_i + mean null f * sum_null P_i), AdaMoE's loss.

    Null experts are interchangeable, so only the total of their loads is balanced.
    """
    n_experts = probs_NE.shape[-1]
    count_E = losses.summed_over_ranks(losses.pick_counts(idx_NK, n_experts), group)
    total = count_E.sum()
    if f_norm == "tokens":
        total = losses.summed_over_ranks(mask_N.sum().float(), group)
    f_E = count_E / total.clamp_min(1)
    if n_true < n_experts:
        f_E = torch.cat([f_E[:n_true], f_E[n_true:].mean().expand(n_experts - n_true)])
    return n_experts * (f_E * losses.masked_mean(at_least_float32(probs_NE), mask_N)).sum()
