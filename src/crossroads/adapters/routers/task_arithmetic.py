"""Task arithmetic: the sum of all experts' deltas, times one number.

Source: Editing Models with Task Arithmetic (Ilharco et al. 2023), which tunes the number on
validation data; without any, 0.4 is a common choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing
from crossroads.adapters.merging import check_weight
from crossroads.adapters.survey.schema import Cells


class TaskArithmetic(Router):
    """w_e = ``weight`` for every expert that adapts the layer; weights do not add to 1."""

    name: ClassVar[str] = "task-arithmetic"
    mode: ClassVar[Mode] = "merge_delta"
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Standard",
        expert_data="Private",
        routing_dataset="None",
        input_granularity="N/A",
        depth_granularity="Model",
        expert_selection="None",
        expert_aggregation="Parameter",
        generalization="Multiple",
        user_dataset="Zero-Shot",
    )

    def __init__(self, *, weight: float = 0.4) -> None:
        super().__init__()
        check_weight(self.name, weight)
        self.weight = weight

    def route(self, given: RouteInput) -> Routing:
        weights_E = self.weight * given.bank.alive_E.float()
        return Routing(weights=weights_E[None, None, None], mode=self.mode, normalised=False)

    def is_static(self, call: Call) -> bool:
        return True

    def settings(self) -> Mapping[str, Any]:
        return {"weight": self.weight}
