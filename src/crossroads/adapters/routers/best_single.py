"""Best single expert: one expert for everything, the baseline that routing has to beat.

Which one is best is told by losses on tasks at hand (``best_of``), and is then fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.scopes import Scope
from crossroads.adapters.selection import one_hot
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError, UsageError


class BestSingle(Router):
    """Weight 1 for ``expert``, which is followed where the bank renames it.

    Raises UsageError at ``prepare`` for no name or an unknown one, and where the expert was removed
    and another one has its name; setting ``expert`` chooses anew.
    """

    name: ClassVar[str] = "best-single"
    scope: ClassVar[Scope] = "model"
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Standard",
        expert_data="Private",
        routing_dataset="Target",
        input_granularity="N/A",
        depth_granularity="Model",
        expert_selection="Sparse",
        expert_aggregation="None",
        generalization="Multiple",
        user_dataset="Few-Shot",
    )

    def __init__(self, *, expert: str = "") -> None:
        super().__init__()
        self.expert = expert

    @property
    def expert(self) -> str:
        """The expert's name in the bank the router was last prepared for."""
        return self._expert

    @expert.setter
    def expert(self, name: str) -> None:
        self._expert, self._place = name, 0
        self._known: dict[str, str] = {}  # the bank's keys when the place was found

    def prepare(self, bank: AdapterBank) -> None:
        if not self.expert:
            raise UsageError(
                "router best-single: which expert? Say best-single:expert=NAME, or choose it by "
                "losses with crossroads.adapters.routers.best_single.best_of; known: "
                + ", ".join(bank.names)
            )
        self._place, self._known = self._found(bank), bank.keys_by_name
        self._expert = bank.names[self._place]

    def _found(self, bank: AdapterBank) -> int:
        places = bank.places_in(self._known)
        if self._known and self._place in places:
            return places.index(self._place)
        if self._known and self.expert in bank.names:
            raise UsageError(
                f"router best-single: the expert {self.expert!r} was removed, and another one has "
                "its name now; set the router's expert to the one that is meant"
            )
        return bank.position(self.expert)

    def route(self, given: RouteInput) -> Routing:
        return one_hot(torch.full((1, 1, 1), self._place))

    def is_static(self, call: Call) -> bool:
        return True

    def settings(self) -> Mapping[str, Any]:
        return {"expert": self.expert}


def best_of(losses: Mapping[str, Sequence[float]]) -> str:
    """Return the expert with the lowest mean loss over tasks, the earlier one among equals.

    ``losses`` holds one number a task for each expert, tasks in the same order.

    Raises InputError where experts were measured on different numbers of tasks, or on none.
    """
    if not losses or len({len(found) for found in losses.values()} | {0}) != 2:
        raise InputError("best single: expected the same tasks, at least one, for every expert")
    return min(losses, key=lambda name: sum(losses[name]) / len(losses[name]))
