"""Average activation: an expert's gate is the mean input of its own training texts.

Scored and mixed as PHATGOOSE's gates are, without training any. Source: the baseline of Learning to
Route Among Specialized Experts (Muqeeth et al. 2024); ``crossroads.adapters.activations`` records
the means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from crossroads.adapters.activations import record_activation
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.core.errors import InputError

if TYPE_CHECKING:
    from crossroads.adapters.lessons import Lesson


class AverageActivation(Phatgoose):
    """Top-k of LN(x) . LN(mean input of expert e) / sqrt(d)."""

    name: ClassVar[str] = "average-activation"
    artifact: ClassVar[str] = "activation"
    artifacts: ClassVar[frozenset[str]] = frozenset({"activation"})
    survey_row: ClassVar[str | None] = "Average Activation"
    learns: ClassVar[int] = 80

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Record the mean inputs of every expert, over ``lesson.steps`` batches of its own task.

        Raises InputError for an expert that no task is named after.
        """
        tasks = {task.name for task in lesson.tasks}
        made = []
        for done, expert in enumerate(lesson.bank.experts()):
            if expert.name not in tasks:
                raise InputError(
                    f"router {self.name}: no task is named after the expert {expert.name}; give "
                    "training rows of its own task"
                )
            batches = map(lesson.of_task(expert.name), range(lesson.steps))
            made.append(record_activation(lesson.model, expert, batches))
            if lesson.progress is not None:
                lesson.progress(done + 1, lesson.bank.n_experts)
        return AdapterBank(made, heads=lesson.bank.heads)
