"""Polytropon and multi-head routing: every task mixes a small inventory of skills.

A layer has logits Z (tasks, heads, skills). A sequence of task t uses w = sigmoid(Z_t), normalised
over the skills of each head, and the *factors* of the skills are averaged, so the merged adapter
keeps its rank. With several heads (MHR), head q chooses for its slice of the inputs and of the
outputs. Sources: Combining Modular Skills in Multitask Learning (Ponti et al. 2022); Multi-Head
Adapter Routing for Cross-Task Generalization (Caccia et al. 2023), section 3.

``crossroads.adapters.skills`` makes the skills, trains them and adapts them to a new task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing, generator
from crossroads.adapters.scopes import Scope, owner
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from crossroads.adapters.lessons import Lesson

UNKNOWN = -1  # a task without logits: every skill alike
_START = 1e-3  # logits are drawn from U(-1e-3, 1e-3)
_TINY = 1e-12  # keeps a head whose gates are all shut from dividing by 0
_GRAINS: Mapping[str, Scope] = {"fine": "module", "coarse": "model"}


class Poly(Router):
    """Sigmoid gates by task over skills; the bank's ``heads`` > 1 make it multi-head routing.

    Parameters
    ----------
    tasks : T, rows of the logits; ``Call.task_ids_B`` counts from 0, -1 is an unknown task
    grain : "fine" has logits for every layer, "coarse" one set for the model
    relaxed : draw relaxed Bernoulli gates in training (PEFT does; the authors' T0 runs do not)
    uniform : every skill alike whatever the task (MHR-mu)
    seed : of the logits' start
    """

    name: ClassVar[str] = "poly"
    mode: ClassVar[Mode] = "merge_factors"
    call_data: ClassVar[frozenset[str]] = frozenset({"task_ids_B"})
    survey_row: ClassVar[str | None] = "Poly and MHR"
    learns: ClassVar[int] = 80
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Custom",
        expert_data="Shared",
        routing_dataset="Multiple",
        input_granularity="Task",
        depth_granularity="Module",
        expert_selection="Dense",
        expert_aggregation="Parameter",
        generalization="Multiple",
        user_dataset="Few-Shot",
    )

    def __init__(
        self,
        *,
        tasks: int = 1,
        grain: str = "fine",
        relaxed: bool = False,
        uniform: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if grain not in _GRAINS:
            raise UsageError(f"router poly: grain is {' or '.join(_GRAINS)}, got {grain!r}")
        if tasks < 1:
            raise UsageError(f"router poly: tasks must be at least 1, got {tasks}")
        self.tasks, self.grain, self.relaxed = tasks, grain, relaxed
        self.uniform, self.seed = uniform, seed
        self._places: dict[str, int] = {}
        self._known: dict[str, str] = {}  # the bank's keys when it was prepared for
        self.logits = nn.ParameterList()

    def prepare(self, bank: AdapterBank) -> None:
        """Make logits (T, H, E) per decision; what is known of a layer and a skill stays."""
        keys = list(dict.fromkeys(self._key(layer) for layer in bank.layers))
        size = (self.tasks, bank.heads, bank.n_experts)
        same = list(self._places) == keys and bank.is_as_in(self._known)
        if same and all(z.shape == size for z in self.logits):
            self._known = bank.keys_by_name
            return
        generator = torch.Generator().manual_seed(self.seed)
        made = []
        for key in keys:
            z_THE = (torch.rand(size, generator=generator) * 2 - 1) * _START
            made.append(self._kept(key, z_THE, bank))
        self._places = {key: place for place, key in enumerate(keys)}
        self._known = bank.keys_by_name
        self.logits = nn.ParameterList(made)

    def logits_of(self, module: str) -> nn.Parameter:
        """Return the logits (T, H, E) that decide for a layer."""
        found = self.logits[self._places[self._key(module)]]
        assert isinstance(found, nn.Parameter)
        return found

    def route(self, given: RouteInput) -> Routing:
        logits_BHE = self._of_tasks(given)
        gates_BHE = self._gates(logits_BHE, given).masked_fill(~given.bank.alive_E, 0.0)
        weights_BHE = gates_BHE / (gates_BHE.sum(-1, keepdim=True) + _TINY)
        return Routing(
            weights=weights_BHE.unsqueeze(1),
            mode="merge_factors",
            logits=logits_BHE.unsqueeze(1),
        )

    def is_static(self, call: Call) -> bool:
        return not call.training

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Train as many skills as there are experts, of their rank and layers, and the logits."""
        from crossroads.adapters.skills import train_skills

        self.tasks = len(lesson.tasks)
        bank = lesson.fresh_experts()
        train_skills(lesson.model, bank, self, lesson.batches(), lesson.settings, **lesson.training)
        return bank

    def settings(self) -> Mapping[str, Any]:
        names = ("tasks", "grain", "relaxed", "uniform", "seed")
        return {name: getattr(self, name) for name in names}

    def _key(self, module: str) -> str:
        return owner(_GRAINS[self.grain], module)

    def _kept(self, key: str, fresh_THE: Tensor, bank: AdapterBank) -> nn.Parameter:
        """Return fresh logits with those of skills that were there before in their places.

        Logits in training stay in it.
        """
        place = self._places.get(key)
        if place is None or self.logits[place].shape[:2] != fresh_THE.shape[:2]:
            return nn.Parameter(fresh_THE, requires_grad=False)
        before = self.logits[place]
        carried_THE = bank.carried(self._known, before.detach(), fresh_THE, axis=-1)
        return nn.Parameter(carried_THE, requires_grad=before.requires_grad)

    def _of_tasks(self, given: RouteInput) -> Tensor:
        """Return the logits of every sequence's task, (B, H, E); zeros make every skill alike."""
        z_THE = self.logits_of(given.module)
        tasks_B = given.call.task_ids_B
        assert tasks_B is not None  # call_data promises it
        if int(tasks_B.max()) >= self.tasks or int(tasks_B.min()) < UNKNOWN:
            raise InputError(
                f"router poly: task ids go from 0 to {self.tasks - 1}, or -1 for an unknown task; "
                f"got {int(tasks_B.min())} to {int(tasks_B.max())}"
            )
        of_task_BHE = z_THE[tasks_B.clamp_min(0)].float()  # float32: gates decide
        is_known_B = tasks_B >= 0 if not self.uniform else torch.zeros_like(tasks_B).bool()
        return torch.where(is_known_B[:, None, None], of_task_BHE, of_task_BHE.new_zeros(()))

    def _gates(self, logits_BHE: Tensor, given: RouteInput) -> Tensor:
        if not (self.relaxed and given.call.training):
            return torch.sigmoid(logits_BHE)
        place = self._places[self._key(given.module)]
        draw = generator(given.call.seed, given.call.step, place)
        uniform = torch.rand(logits_BHE.shape, generator=draw)
        noise_BHE = torch.logit(uniform, eps=1e-6).to(logits_BHE.device)
        return torch.sigmoid(logits_BHE + noise_BHE)
