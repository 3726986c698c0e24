"""Uniform merge: every expert with the same weight, one merged adapter for everything."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing


class Uniform(Router):
    """w_e = 1 / number of experts that adapt the layer."""

    name: ClassVar[str] = "uniform"
    mode: ClassVar[Mode] = "merge_delta"

    def __init__(self) -> None:
        super().__init__()
        self._decided: dict[str, tuple[Tensor, Routing]] = {}  # and which experts it was made of

    def route(self, given: RouteInput) -> Routing:
        alive_E = given.bank.alive_E
        made_of, routing = self._decided.get(given.module, (None, None))
        if routing is None or made_of is not alive_E:
            weights_E = alive_E / alive_E.sum()
            routing = Routing(weights=weights_E[None, None, None], mode="merge_delta")
            self._decided[given.module] = (alive_E, routing)
        return routing

    def is_static(self, call: Call) -> bool:
        return True
