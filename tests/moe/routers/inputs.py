"""What the tests of routers hand to ``decide``: a view of one layer, tokens of a seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossroads.core.routed import AuxTerm
from crossroads.moe.contract import Router, RouterInput, RoutingDecision, TokenChoice
from crossroads.moe.experts import FFNBank
from crossroads.moe.layer import MoELayer


def tokens(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal numbers, (B, T, D)."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def view(x_BTD: Tensor, **fields: Any) -> RouterInput:
    """Return a router's view of one layer; all tokens are real unless a mask is given."""
    mask_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool)
    rng = torch.Generator().manual_seed(0)
    return RouterInput(**{"x_BTD": x_BTD, "mask_BT": mask_BT, "rng": rng, **fields})


def places(decision: RoutingDecision) -> tuple[Tensor, Tensor]:
    """Return experts and weights of a token choice."""
    assert isinstance(decision.choice, TokenChoice)
    return decision.choice.idx_NK, decision.choice.w_NK


def layer_of(router: Router, d: int, hidden: int = 8, **settings: Any) -> MoELayer:
    """Return a layer with experts of the router's kinds, drawn from a fixed seed."""
    torch.manual_seed(1)
    return MoELayer(router, FFNBank(d, hidden, router.kinds), **settings)


def with_logits(router: Router, logits_NE: Tensor) -> Tensor:
    """Set a linear gate so that token n of the returned (1, N, N) tokens scores row n."""
    n_tokens, n_experts = logits_NE.shape
    router.gate = torch.nn.Linear(n_tokens, n_experts, bias=False).to(logits_NE.dtype)
    router.gate.weight.data.copy_(logits_NE.T)
    return torch.eye(n_tokens, dtype=logits_NE.dtype).unsqueeze(0)


def value(term: AuxTerm) -> float:
    """Return a loss as a number."""
    return float(term.value.detach())
