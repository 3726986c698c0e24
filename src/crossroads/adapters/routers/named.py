"""Experts by name, one a sequence, as the caller says: ``calling(experts=["german", None])``."""

from __future__ import annotations

from typing import ClassVar

import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.scopes import Scope
from crossroads.core.errors import unknown_name

BASE = "__base__"  # PEFT's name of the base model in a list of adapters


class Named(Router):
    """Weight 1 for each sequence's own expert; None or "__base__" = the base model."""

    name: ClassVar[str] = "named"
    scope: ClassVar[Scope] = "model"
    call_data: ClassVar[frozenset[str]] = frozenset({"experts"})
    no_rival: ClassVar[str] = (
        "is told every prompt's expert by name, which is the oracle; name that one"
    )

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, int] = {}

    def prepare(self, bank: AdapterBank) -> None:
        self._places = {name: place for place, name in enumerate(bank.names)}

    def route(self, given: RouteInput) -> Routing:
        index_B = torch.tensor([self._place(name) for name in given.call.experts or ()])
        index_B111 = index_B[:, None, None, None]
        return Routing(weights=(index_B111 >= 0).float(), index=index_B111.clamp_min(0))

    def is_static(self, call: Call) -> bool:
        return True

    def _place(self, name: str | None) -> int:
        if name is None or name == BASE:
            return -1
        if name not in self._places:
            raise unknown_name("expert", name, self._places)
        return self._places[name]
