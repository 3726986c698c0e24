"""Uniform merge: every expert with the same weight, one merged adapter for everything."""

from __future__ import annotations

from typing import ClassVar

from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing
from crossroads.core.gating import softmax


class Uniform(Router):
    """w_e = 1 / number of experts that adapt the layer."""

    name: ClassVar[str] = "uniform"
    mode: ClassVar[Mode] = "merge_delta"

    def route(self, given: RouteInput) -> Routing:
        zeros_E = given.bank.scale_E.new_zeros(given.bank.n_experts)
        weights_E = softmax(zeros_E.masked_fill(~given.bank.alive_E, float("-inf")))
        return Routing(weights=weights_E[None, None, None], mode="merge_delta")

    def is_static(self, call: Call) -> bool:
        return True
