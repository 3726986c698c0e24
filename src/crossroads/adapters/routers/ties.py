"""TIES: trim small numbers, elect a sign for each place, average those that agree with it.

Source: TIES-Merging: Resolving Interference When Merging Models (Yadav et al. 2023), computed by
PEFT's functions; the paper merges whole models, PEFT the factors A and B of adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from crossroads.adapters.bank import AdapterBank, LoRA, ModuleBank
from crossroads.adapters.contract import Call, Mode, Router
from crossroads.adapters.merging import check_merge, check_ready, merge, peft_merges
from crossroads.adapters.routers.task_arithmetic import TaskArithmetic
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import unknown_name

_ELECTIONS = ("total", "frequency")


class Ties(Router):
    """One merged adapter a layer; nothing is routed.

    Parameters
    ----------
    density : share of an expert's numbers that is kept, the largest
    weight : every expert's
    elect : how a sign wins, by "total" size or by "frequency"
    on, rank : see ``crossroads.adapters.merging``
    """

    name: ClassVar[str] = "ties"
    mode: ClassVar[Mode] = "merge_delta"
    cells: ClassVar[Cells | None] = TaskArithmetic.cells

    def __init__(
        self,
        *,
        density: float = 0.2,
        weight: float = 1.0,
        elect: str = "total",
        on: str = "factors",
        rank: int = 0,
    ) -> None:
        super().__init__()
        check_merge(self.name, on=on, density=density, rank=rank, weight=weight)
        if elect not in _ELECTIONS:
            raise unknown_name("election of signs of router ties", elect, _ELECTIONS)
        self.density, self.weight, self.elect = density, weight, elect
        self.on, self.rank = on, rank

    def prepare(self, bank: AdapterBank) -> None:
        """Raise what ``merging.check_ready`` raises: no PEFT, or factors of unequal ranks."""
        check_ready(self.name, bank, on=self.on)

    def merged(self, bank: ModuleBank) -> LoRA:
        ties = partial(
            peft_merges(self.name).ties, density=self.density, majority_sign_method=self.elect
        )
        return merge(bank, ties, weight=self.weight, on=self.on, rank=self.rank)

    def is_static(self, call: Call) -> bool:
        return True

    def settings(self) -> Mapping[str, Any]:
        return {n: getattr(self, n) for n in ("density", "weight", "elect", "on", "rank")}
