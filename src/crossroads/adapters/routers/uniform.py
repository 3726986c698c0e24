"""Uniform merge: every expert with the same weight, one merged adapter for everything."""

from __future__ import annotations

from typing import ClassVar

from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing


class Uniform(Router):
    """w_e = 1 / number of experts that adapt the layer."""

    name: ClassVar[str] = "uniform"
    mode: ClassVar[Mode] = "merge_delta"

    def route(self, given: RouteInput) -> Routing:
        alive_E = given.bank.alive_E.float()
        weights_E = alive_E / alive_E.sum()
        return Routing(weights=weights_E[None, None, None], mode="merge_delta")

    def is_static(self, call: Call) -> bool:
        return True
