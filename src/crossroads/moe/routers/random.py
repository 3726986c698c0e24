"""Frozen random routing: a linear gate that is drawn once and never trained.

Source: SMoE-Dropout (2023): a random fixed router, with more experts as training goes on and any
number of them in evaluation. Without ``k_end`` it is the plain frozen gate.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crossroads.core import gating
from crossroads.core.errors import UsageError
from crossroads.moe.contract import RouterInput
from crossroads.moe.router import TokenChoiceRouter


class Random(TokenChoiceRouter):
    """Top-k of the softmax of a frozen linear score.

    Parameters
    ----------
    k : experts of a token at the start of training
    k_end : experts at its end, reached linearly in ``progress``; None = k throughout
    k_eval : experts in evaluation; None = k_end
    settings : of ``TokenChoiceRouter``; the balance loss is left out, for it can move nothing here
        but the stream below
    """

    name = "random"

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k: int = 1,
        k_end: int | None = None,
        k_eval: int | None = None,
        balance: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(d, n_experts, k=k, balance=balance, **settings)
        self.k_end = k if k_end is None else k_end
        self.k_eval = self.k_end if k_eval is None else k_eval
        for label, places in (("k_end", self.k_end), ("k_eval", self.k_eval)):
            if not 1 <= places <= n_experts:
                raise UsageError(
                    f"{label}: expected between 1 and {n_experts} (the experts), got {places}"
                )
        self.queue_for(max(k, self.k_end, self.k_eval))
        self.gate.requires_grad_(False)

    def places(self, inp: RouterInput) -> int:
        """Return K of this call."""
        if not inp.training:
            return self.k_eval
        return round(self.k + inp.progress * (self.k_end - self.k))

    def select(self, probs_NE: Tensor, logits_NE: Tensor, inp: RouterInput) -> Tensor:
        return gating.top_k(logits_NE, self.places(inp))

    @property
    def nominal_active(self) -> float:
        return float(self.k_end)
