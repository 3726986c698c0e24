"""LoraHub: one weight an expert for the whole task, searched without gradients on a few examples.

A* = sum_e w_e A_e and B* = sum_e w_e B_e, w in [-1.5, 1.5], minimising loss + 0.05 mean |w|.
Source: LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition (Huang et al.
2023). The search is nevergrad's NGOpt as in the paper where nevergrad is installed, else a
(1+1) evolution strategy. The penalty divides by the number of experts, as the authors' code does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.calls import calling
from crossroads.adapters.collection.batches import batch_of_rows, fitting
from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.scopes import Scope
from crossroads.adapters.survey.schema import Cells
from crossroads.adapters.texts import answer_nll
from crossroads.core.errors import MissingExtraError, UsageError
from crossroads.core.progress import Progress

if TYPE_CHECKING:
    from crossroads.adapters.lessons import Lesson

Point = npt.NDArray[np.float64]
Objective = Callable[[Point], float]
_EXAMPLES = 5  # training rows of a task, as in the paper
_SEARCHES = ("auto", "nevergrad", "evolution")


class LoraHub(Router):
    """Constant weights found by ``fit``; factors are averaged, so ranks must be equal.

    Parameters
    ----------
    budget : evaluations of the loss
    limit : largest size of a weight
    penalty : of the mean size of the weights
    search : "nevergrad", "evolution", or "auto": the first of them that is installed
    seed : of the search
    """

    name: ClassVar[str] = "lorahub"
    mode: ClassVar[Mode] = "merge_factors"
    scope: ClassVar[Scope] = "model"
    survey_row: ClassVar[str | None] = "LoraHub"
    learns: ClassVar[int] = 40
    by_task: ClassVar[bool] = True
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Standard",
        expert_data="Private",
        routing_dataset="Target",
        input_granularity="Task",
        depth_granularity="Model",
        expert_selection="Sparse",
        expert_aggregation="Parameter",
        generalization="Out-of-Distribution",
        user_dataset="Few-Shot",
    )
    weights_E: Tensor

    def __init__(
        self,
        *,
        budget: int = 40,
        limit: float = 1.5,
        penalty: float = 0.05,
        search: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if search not in _SEARCHES:
            raise UsageError(
                f"router lorahub: search: expected one of {', '.join(_SEARCHES)}, got {search!r}"
            )
        if not (budget >= 1 and 0 < limit < math.inf and 0 <= penalty < math.inf and seed >= 0):
            raise UsageError(
                "router lorahub: expected budget of at least 1, limit above 0, penalty and seed of "
                f"at least 0; got budget={budget}, limit={limit}, penalty={penalty} and seed={seed}"
            )
        self.budget, self.limit, self.penalty = budget, limit, penalty
        self.search, self.seed = search, seed
        self._known: dict[str, str] = {}  # the bank's keys when it was prepared for
        self.register_buffer("weights_E", torch.empty(0))

    def prepare(self, bank: AdapterBank) -> None:
        """Keep the weights of experts that stay; new ones have weight 0 until the next ``fit``."""
        self.weights_E = bank.carried(self._known, self.weights_E, torch.zeros(bank.n_experts))
        self._known = bank.keys_by_name

    def fit(self, loss: Callable[[], float], progress: Progress | None = None) -> float:
        """Search the weights and keep the best; return its loss without the penalty.

        ``loss`` measures the model this router is in on the few examples there are. The weights
        of 0, the base model, are measured first.
        """
        best_value, best_loss, best_w = np.inf, np.inf, np.zeros(len(self._known))
        done = 0

        def objective(w: Point) -> float:
            nonlocal best_value, best_loss, best_w, done
            self.weights_E = torch.from_numpy(w).float()
            found = loss()
            value = found + self.penalty * float(np.abs(w).mean())
            if value < best_value:
                best_value, best_loss, best_w = value, found, w.copy()
            done += 1
            if progress is not None:
                progress(done, self.budget)
            return value

        searched = _evolution if self.search == "evolution" else _nevergrad
        try:
            searched(objective, len(self._known), self.limit, self.budget, self.seed)
        except MissingExtraError:
            if self.search == "nevergrad":
                raise
            _evolution(objective, len(self._known), self.limit, self.budget, self.seed)
        self.weights_E = torch.from_numpy(best_w).float()
        return best_loss

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Search the weights on the first few training rows of the tasks; a step is a search."""
        rows = [
            row
            for task in lesson.tasks
            for row in fitting(lesson.tokenizer, task, "train")[:_EXAMPLES]
        ]
        longest = max(task.length for task in lesson.tasks)
        batch = batch_of_rows(lesson.tokenizer, rows, length=longest)
        self.budget = lesson.steps
        routed = RoutedModel(lesson.model, lesson.bank, self)

        def loss() -> float:
            with torch.no_grad(), calling(mask=batch.mask_BT):
                return float(answer_nll(lesson.model, batch).mean())

        try:
            self.fit(loss, lesson.progress)
        finally:
            routed.unwrap()
        return lesson.bank

    def route(self, given: RouteInput) -> Routing:
        return Routing(weights=self.weights_E[None, None, None], mode=self.mode, normalised=False)

    def is_static(self, call: Call) -> bool:
        return True

    def settings(self) -> Mapping[str, Any]:
        names = ("budget", "limit", "penalty", "search", "seed")
        return {name: getattr(self, name) for name in names}


def _nevergrad(objective: Objective, size: int, limit: float, budget: int, seed: int) -> None:
    try:
        import nevergrad
    except ImportError:
        raise MissingExtraError("router lorahub: nevergrad", extra="adapters") from None
    space = nevergrad.p.Array(init=np.zeros(size), lower=-limit, upper=limit)
    space.random_state.seed(seed)
    optimiser = nevergrad.optimizers.NGOpt(parametrization=space, budget=budget)
    for place in range(budget):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries it draws on, about plotting
            asked = optimiser.ask() if place else space.spawn_child()
        optimiser.tell(asked, objective(np.asarray(asked.value)))


def _evolution(objective: Objective, size: int, limit: float, budget: int, seed: int) -> None:
    """Search from 0 with one parent and one child, steps grown and shrunk by the 1/5 rule."""
    random, parent, step = np.random.default_rng(seed), np.zeros(size), limit / 3
    lowest = objective(parent)
    for _ in range(budget - 1):
        child = np.clip(parent + step * random.standard_normal(size), -limit, limit)
        value = objective(child)
        if value <= lowest:
            parent, lowest, step = child, value, step * np.exp(0.8)
        else:
            step *= np.exp(-0.2)
