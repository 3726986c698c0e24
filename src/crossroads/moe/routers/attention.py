"""Attention router: the experts attend to each other before one is chosen.

Every token makes a query, a key and a value *per expert*, one number each; experts are the
sequence of the attention:

    q = Wq x, k = Wk x, v = Wv x        each in R^E
    A_ij = softmax_j(q_i k_j),  r = A v
    experts = the K largest r, weights = softmax over those K

Source: Yuan 2.0-M32: Mixture of Experts with Attention Router (2024). Choices made
here: weights start as N(0, 1/d) and ``v_gain`` scales those of Wv, since r is a mean of v and
spreads far less than v does; the published inference code's softmax over all experts without
renormalising is ``renorm=False``.

Axes: N tokens, D width, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crossroads.core import gating
from crossroads.moe.checks import check_positive
from crossroads.moe.contract import RouterInput
from crossroads.moe.router import TokenChoiceRouter


class AttentionRouter(TokenChoiceRouter):
    """Logits of correlated experts, r = softmax(q k^T) v token by token, then the k largest.

    Raises UsageError for settings out of range.

    Parameters
    ----------
    d, n_experts : width of the tokens, number of experts; costs 3 E d parameters and E^2 a token
    k : experts per token
    v_gain : factor on the initial weights of the values
    renorm : weights are a softmax over the chosen (True) or over all experts (False)
    balance : coefficient of the Switch balance loss; the paper balances nothing
    settings : of ``TokenChoiceRouter``
    """

    name = "attention"
    system = "yuan-attention-router"
    default_renorm = True

    def __init__(
        self,
        d: int,
        n_experts: int,
        *,
        k: int = 2,
        v_gain: float = 1.0,
        balance: float = 0.0,
        **settings: Any,
    ) -> None:
        check_positive(v_gain=v_gain)
        super().__init__(
            d,
            n_experts,
            k=k,
            balance=balance,
            **settings,
        )
        with torch.no_grad():
            self.value.weight.mul_(v_gain)

    def build_score(self, bias: bool) -> None:
        self.query, self.key, self.value = (
            nn.Linear(self.d, self.n_experts, bias=bias) for _ in range(3)
        )
        for part in (self.query, self.key, self.value):
            nn.init.normal_(part.weight, std=self.d**-0.5)
            if bias:
                nn.init.zeros_(part.bias)

    def score(self, inp: RouterInput) -> Tensor:
        x_ND = gating.at_least_float32(inp.x_ND)
        parts = (self.query, self.key, self.value)
        weight_3ED = torch.cat([part.weight for part in parts]).to(x_ND.dtype)
        bias_3E = None
        if self.query.bias is not None:
            bias_3E = torch.cat([part.bias for part in parts]).to(x_ND.dtype)
        q_NE, k_NE, v_NE = nn.functional.linear(x_ND, weight_3ED, bias_3E).chunk(3, dim=-1)
        return expert_attention(q_NE, k_NE, v_NE)


def expert_attention(q_NE: Tensor, k_NE: Tensor, v_NE: Tensor) -> Tensor:
    """Return softmax_j(q_i k_j) v row by row, (N, E); head size is 1, so there is no scale."""
    # Tokens last: rows of E numbers are too short for a fast softmax, columns of N are not.
    q_EN, k_EN, v_EN = (part.T.contiguous() for part in (q_NE, k_NE, v_NE))
    attn_EEN = torch.softmax(q_EN.unsqueeze(1) * k_EN, dim=1)
    return (attn_EEN * v_EN).sum(1).T
