"""Polytropon and multi-head routing: every task mixes a small inventory of skills.

A layer has logits Z (tasks, heads, skills). A sequence of task t uses w = sigmoid(Z_t), normalised
over the skills of each head, and the *factors* of the skills are averaged, so the merged adapter
keeps its rank. With several heads (MHR), head q chooses for its slice of the inputs and of the
outputs. Sources: Combining Modular Skills in Multitask Learning (Ponti et al. 2022); Multi-Head
Adapter Routing for Cross-Task Generalization (Caccia et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing
from crossroads.adapters.scopes import Scope, owner
from crossroads.core.errors import InputError, UsageError

UNKNOWN = -1  # a task without logits: every skill alike
_NOISE = 1e-12
_SCOPES = {"fine": "module", "coarse": "model"}


class Poly(Router):
    """Sigmoid gates by task over skills; the bank's ``heads`` > 1 make it multi-head routing.

    Parameters
    ----------
    tasks : T, rows of the logits; ``Call.task_ids_B`` counts from 0, -1 is an unknown task
    grain : "fine" has logits for every layer, "coarse" one set for the model
    relaxed : draw relaxed Bernoulli gates in training (PEFT does; the authors' T0 runs do not)
    uniform : every skill alike whatever the task (MHR-mu)
    seed : of the logits' start, U(-1e-3, 1e-3)
    """

    name: ClassVar[str] = "poly"
    mode: ClassVar[Mode] = "merge_factors"
    call_data: ClassVar[frozenset[str]] = frozenset({"task_ids_B"})

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
        if grain not in _SCOPES:
            raise UsageError(f"poly: grain is {' or '.join(_SCOPES)}, got {grain!r}")
        if tasks < 1:
            raise UsageError(f"poly: tasks must be at least 1, got {tasks}")
        self.tasks, self.grain, self.relaxed = tasks, grain, relaxed
        self.uniform, self.seed = uniform, seed
        self._places: dict[str, int] = {}
        self.logits = nn.ParameterList()

    @property
    def grain_scope(self) -> Scope:
        return "module" if self.grain == "fine" else "model"

    def prepare(self, bank: AdapterBank) -> None:
        """Make logits (T, H, E) per decision; those of the same size stay."""
        keys = list(dict.fromkeys(owner(self.grain_scope, layer) for layer in bank.layers))
        size = (self.tasks, bank.heads, bank.n_experts)
        if list(self._places) == keys and all(z.shape == size for z in self.logits):
            return
        generator = torch.Generator().manual_seed(self.seed)
        self._places = {key: place for place, key in enumerate(keys)}
        self.logits = nn.ParameterList(
            nn.Parameter(
                (torch.rand(size, generator=generator) * 2 - 1) * 1e-3, requires_grad=False
            )
            for _ in keys
        )

    def route(self, given: RouteInput) -> Routing:
        logits_BHE = self._logits(given)
        gates_BHE = self._gates(logits_BHE, given).masked_fill(~given.bank.alive_E, 0.0)
        weights_BHE = gates_BHE / (gates_BHE.sum(-1, keepdim=True) + _NOISE)
        return Routing(
            weights=weights_BHE.unsqueeze(1),
            mode="merge_factors",
            logits=logits_BHE.unsqueeze(1),
        )

    def is_static(self, call: Call) -> bool:
        return not call.training

    def settings(self) -> Mapping[str, Any]:
        names = ("tasks", "grain", "relaxed", "uniform", "seed")
        return {name: getattr(self, name) for name in names}

    def _logits(self, given: RouteInput) -> Tensor:
        z_THE = self.logits[self._places[owner(self.grain_scope, given.module)]]
        tasks_B = given.call.task_ids_B
        assert tasks_B is not None  # call_data promises it
        if int(tasks_B.max()) >= self.tasks or int(tasks_B.min()) < UNKNOWN:
            raise InputError(
                f"router poly: task ids go from 0 to {self.tasks - 1}, or -1 for an unknown task; "
                f"got {int(tasks_B.min())} to {int(tasks_B.max())}"
            )
        if self.uniform:
            return torch.zeros_like(z_THE[tasks_B.clamp_min(0)])
        is_known = (tasks_B >= 0)[:, None, None]
        return torch.where(is_known, z_THE[tasks_B.clamp_min(0)], z_THE.new_zeros(()))

    def _gates(self, logits_BHE: Tensor, given: RouteInput) -> Tensor:
        if not (self.relaxed and given.call.training):
            return torch.sigmoid(logits_BHE.float())
        place = self._places[owner(self.grain_scope, given.module)]
        seed = hash((given.call.seed, given.call.step, place)) & 0x7FFFFFFF
        uniform = torch.rand(logits_BHE.shape, generator=torch.Generator().manual_seed(seed))
        return torch.sigmoid(logits_BHE.float() + torch.logit(uniform, eps=1e-6))
