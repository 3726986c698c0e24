"""Loss-free balancing: a bias per expert, moved after each step, takes part in selection only.

Source: Auxiliary-Loss-Free Load Balancing (2024), algorithm 1, as DeepSeek-V3 uses it: after each
step b_e += u * sign(mean load - load_e). The bias never enters a weight and carries no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from crossroads.core import gating, losses
from crossroads.core.errors import UsageError
from crossroads.core.routed import AuxTerm
from crossroads.moe.checks import check_coefficients
from crossroads.moe.contract import RouterInput, without_halves
from crossroads.moe.router import Scored, grouped
from crossroads.moe.routers.sigmoid import Sigmoid


class LossFree(Sigmoid):
    """Top-k of s + b, weights from s alone.

    The bias is the buffer ``bias_E`` of the state dict. It changes in ``commit`` alone, from the
    counts before capacity of all micro-batches and ranks of a step, and stays float32 when the
    model is cast.

    Parameters
    ----------
    scores : s is ``sigmoid`` or ``softmax`` of the logits
    renorm : divide the chosen weights by their sum; None = sigmoid scores of more than one place
    rate : u, what a step adds to or takes from the bias of an expert
    sequence_balance : coefficient of the balance loss within a sequence; 0 leaves it out (1e-4 is
        a usual choice)
    settings : of ``TokenChoiceRouter``; ``balance`` is 0 unless given
    """

    name = "loss-free"
    bias_E: Tensor

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        scores: Literal["sigmoid", "softmax"] = "sigmoid",
        rate: float = 1e-3,
        sequence_balance: float = 0.0,
        balance: float = 0.0,
        renorm: bool | None = None,
        **settings: Any,
    ) -> None:
        if scores not in ("sigmoid", "softmax"):
            raise UsageError(f"scores: expected 'sigmoid' or 'softmax', got {scores!r}")
        check_coefficients(rate=rate, sequence_balance=sequence_balance)
        if renorm is None and scores == "softmax":
            renorm = False  # shares of all experts already
        super().__init__(d, n_experts, balance=balance, renorm=renorm, **settings)
        self.scores = scores
        self.rate = rate
        self.sequence_balance = sequence_balance
        self.register_buffer("bias_E", torch.zeros(n_experts))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LossFree:
        """Move and cast as any module, but keep the bias: half precision would lose its steps."""
        return super()._apply(without_halves(fn, self.bias_E), recurse)

    def normalise(self, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        if self.scores == "softmax":
            return gating.softmax(logits_NE)
        return super().normalise(logits_NE, inp)

    def select(self, probs_NE: Tensor, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        biased_NE = probs_NE.detach() + self.bias_E.to(probs_NE.dtype)
        # A forbidden expert has score 0, which its bias could lift above a permitted one.
        return gating.top_k(biased_NE.masked_fill(torch.isneginf(logits_NE), -torch.inf), self.k)

    def losses(self, scored: Scored, inp: RouterInput) -> dict[str, AuxTerm]:
        terms = super().losses(scored, inp)
        if self.sequence_balance:
            value = losses.sequence_balance(
                grouped(scored.probs_NE, inp),
                grouped(scored.idx_NK, inp),
                inp.mask_BT,
                group=self.process_group,
            )
            terms["sequence_balance"] = AuxTerm(value, self.sequence_balance)
        return terms

    @torch.no_grad()
    def commit(self, stats: Mapping[str, Tensor], new_state: Mapping[str, Tensor]) -> None:
        if "count_E" not in stats:
            raise UsageError(
                "stats: expected 'count_E', the picks of every expert that decisions carry in "
                f"their stats, got {sorted(stats) or 'none'}"
            )
        count_E = stats["count_E"].to(self.bias_E)
        self.bias_E += self.rate * torch.sign(count_E.mean() - count_E)
