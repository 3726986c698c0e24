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
    """Weight 1 for ``expert``; UsageError at ``prepare`` for no name or an unknown one."""

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
        self.expert, self._place = expert, 0

    def prepare(self, bank: AdapterBank) -> None:
        if not self.expert:
            raise UsageError(
                "router best-single: which expert? Say best-single:expert=NAME, or choose it by "
                "losses with crossroads.adapters.routers.best_single.best_of; known: "
                + ", ".join(bank.names)
            )
        self._place = bank.position(self.expert)

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
