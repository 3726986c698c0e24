"""A router with one trainable gate."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.scopes import Scope
from crossroads.core.gating import softmax
from crossroads.core.routed import AuxTerm


class Gated(Router):
    """One trainable gate for everything; notes what it was asked."""

    name: ClassVar[str] = "gated"

    def __init__(self, scope: Scope = "module", experts: int = 3) -> None:
        super().__init__()
        self.scope = scope  # type: ignore[misc]
        draw = torch.Generator().manual_seed(5)
        self.gate_EI = nn.Parameter(torch.randn(experts, 64, generator=draw))
        self.asked: list[RouteInput] = []

    def route(self, given: RouteInput) -> Routing:
        self.asked.append(given)
        if self.scope == "model":
            assert given.call.task_ids_B is not None
            weights = softmax(self.gate_EI[:, given.call.task_ids_B].T)[:, None, None]
        else:
            scores = given.x_BTI.float() @ self.gate_EI[:, : given.bank.inputs].T
            weights = softmax(scores)[:, :, None]
        aux = {"size": AuxTerm(weights.square().mean(), 0.5)}
        return Routing(weights=weights, aux=aux)
