"""Multitask: no routing, one adapter trained on everybody's data in one place.

The bound that routing among finished experts is measured by: it needs all training data at once,
which contributors of adapters keep to themselves. The adapter is as large as all experts together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call
from crossroads.adapters.experts import Alone, expert_of, train_expert
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError

if TYPE_CHECKING:
    from crossroads.adapters.lessons import Lesson

_RATE = 3e-3
_SCALE = 2.0  # alpha / rank


class Multitask(Alone):
    """The bank's only adapter, for everything."""

    name: ClassVar[str] = "multitask"
    learns: ClassVar[int] = 80
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Custom",
        expert_data="Shared",
        routing_dataset="None",
        input_granularity="Task",
        depth_granularity="Model",
        expert_selection="Dense",
        expert_aggregation="None",
        generalization="Multiple",
        user_dataset="Zero-Shot",
    )

    def prepare(self, bank: AdapterBank) -> None:
        if bank.n_experts != 1:
            raise InputError(
                f"router multitask: is one adapter for all tasks, the bank has {bank.n_experts}; "
                "learn it from rows of all tasks"
            )

    def is_static(self, call: Call) -> bool:
        return True

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Train an adapter of the experts' layers, with as many ranks as they have together."""
        rank = lesson.rank * lesson.bank.n_experts
        start = expert_of(lesson.sizes, self.name, rank=rank, alpha=_SCALE * rank, seed=lesson.seed)
        expert, _ = train_expert(
            lesson.model, start, lesson.batches(), lesson.settings, lr=_RATE, **lesson.training
        )
        return AdapterBank([expert])
