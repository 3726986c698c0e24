"""DARE: drop numbers at random, scale up the rest to the same expectation, then merge.

Source: Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch
(Yu et al. 2024), computed by PEFT's functions; the paper merges whole models, PEFT the factors A
and B of adapters.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, LoRA, ModuleBank
from crossroads.adapters.contract import Call, Mode, Router
from crossroads.adapters.merging import check_merge, check_ready, merge, peft_merges
from crossroads.adapters.routers.task_arithmetic import TaskArithmetic
from crossroads.adapters.survey.schema import Cells

_SUMMED, _ELECTED = 0.4, 1.0  # as for task arithmetic and for TIES


class Dare(Router):
    """One merged adapter a layer; nothing is routed.

    Parameters
    ----------
    density : share of an expert's numbers that is kept, drawn at random
    elect : merge as TIES does, by an elected sign, instead of adding up
    weight : every expert's; None = 0.4 when adding up, 1 when electing
    seed : of the draws; each layer draws by (seed, its name)
    on, rank : see ``crossroads.adapters.merging``
    """

    name: ClassVar[str] = "dare"
    mode: ClassVar[Mode] = "merge_delta"
    cells: ClassVar[Cells | None] = TaskArithmetic.cells

    def __init__(
        self,
        *,
        density: float = 0.5,
        elect: bool = False,
        weight: float | None = None,
        seed: int = 0,
        on: str = "factors",
        rank: int = 0,
    ) -> None:
        super().__init__()
        check_merge(self.name, on=on, density=density, rank=rank, weight=weight)
        self.density, self.elect, self.weight = density, elect, weight
        self.seed, self.on, self.rank = seed, on, rank

    def prepare(self, bank: AdapterBank) -> None:
        """Raise what ``merging.check_ready`` raises: no PEFT, or factors of unequal ranks."""
        check_ready(self.name, bank, on=self.on)

    def merged(self, bank: ModuleBank) -> LoRA:
        weight = self.weight
        if weight is None:
            weight = _ELECTED if self.elect else _SUMMED
        with torch.random.fork_rng(devices=[]):  # PEFT draws from torch's global generator
            torch.manual_seed(zlib.crc32(f"{self.seed} {bank.name}".encode()))
            return merge(bank, self._combined, weight=weight, on=self.on, rank=self.rank)

    def is_static(self, call: Call) -> bool:
        return True

    def settings(self) -> Mapping[str, Any]:
        names = ("density", "elect", "weight", "seed", "on", "rank")
        return {name: getattr(self, name) for name in names}

    def _combined(self, tensors: Sequence[Tensor], weights_E: Tensor) -> Tensor:
        merges = peft_merges(self.name)
        combined = merges.dare_ties if self.elect else merges.dare_linear
        found: Tensor = combined(list(tensors), weights_E, self.density)
        return found
