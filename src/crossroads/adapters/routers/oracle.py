"""Oracle: the expert that was trained on a sequence's task, told from outside.

The usual upper end of a comparison, not a router one can use: it needs ``labels`` of every
sequence. Routing may beat it, since another expert or a mix can be better than the own one.
"""

from __future__ import annotations

from typing import ClassVar

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.scopes import Scope
from crossroads.core.errors import InputError


class Oracle(Router):
    """Weight 1 for the expert of ``labels_B``, counted in the bank's order; -1 = the base model."""

    name: ClassVar[str] = "oracle"
    scope: ClassVar[Scope] = "model"
    call_data: ClassVar[frozenset[str]] = frozenset({"labels_B"})

    def __init__(self) -> None:
        super().__init__()
        self._names: tuple[str, ...] = ()

    def prepare(self, bank: AdapterBank) -> None:
        self._names = bank.names

    def route(self, given: RouteInput) -> Routing:
        label_B = given.call.labels_B
        if label_B is None or int(label_B.max()) >= len(self._names) or int(label_B.min()) < -1:
            raise InputError(
                f"router oracle: labels: expected one of 0 ... {len(self._names) - 1} for every "
                f"sequence, or -1 for the base model, got {label_B}"
            )
        has_expert_B111 = (label_B >= 0)[:, None, None, None]
        return Routing(
            weights=has_expert_B111.float(), index=label_B.clamp_min(0)[:, None, None, None]
        )

    def is_static(self, call: Call) -> bool:
        return True
