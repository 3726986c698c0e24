"""Task-level mixture of experts: a representation of the task picks one expert in every block.

A task has a vector e, learnt or given. A small network maps it to logits z_l over the experts of
block l; a block's linear layers share the choice, and every token of a task takes it. In training
the choice is one-hot with the gradient of a softmax (straight-through Gumbel), evaluated it is the
largest logit. Source: Eliciting and Understanding Cross-Task Skills with Task-Level
Mixture-of-Experts (Ye et al. 2022), section 3.

Departures: experts are LoRAs on the linear layers of a block, the paper copies whole blocks;
``crossroads.adapters.task_level.blocks`` averages outputs of whole blocks as the paper does. Gumbel
noise is drawn in training alone. Every sequence has its own route, so batches may mix tasks.

Axes: T tasks, D width of a task vector, L blocks, E experts, B sequences.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing, generator
from crossroads.adapters.scopes import Scope, owner
from crossroads.adapters.survey.schema import Cells
from crossroads.adapters.task_level.networks import HEADS, Form, TaskNetwork
from crossroads.adapters.task_level.vectors import random_vectors
from crossroads.core.errors import InputError, UsageError, unknown_name
from crossroads.core.gating import first_maximum, softmax
from crossroads.core.routed import AuxTerm

if TYPE_CHECKING:
    from crossroads.adapters.lessons import Lesson

_LOG = logging.getLogger(__name__)
Select = Literal["straight-through", "gumbel", "softmax", "average", "random", "random-sequence"]
_CONTROLS = frozenset({"average", "random", "random-sequence"})
_TEXTS = 64  # prompts that a task's vector is the centroid of
UNKNOWN = -1  # a task without a vector: ``Call.embedding_BG`` is its vector


class TaskMoE(Router):
    """One decision per block and sequence, by the sequence's task.

    Parameters
    ----------
    tasks, width : T and D; ``set_vectors`` replaces the random vectors and sets both
    form, hidden : of the network, see ``crossroads.adapters.task_level.networks``
    select : "straight-through" one-hot, "gumbel" soft samples, "softmax" no noise; as controls
        "average" (1 / E), "random" (one-hot by task, fixed) and "random-sequence" (drawn anew)
    tau, rate, floor : temperature max(tau * exp(-rate * step), floor), divides logits in every mode
    explore : share of sequences and blocks that take a random expert in training
    distance : coefficient of the mean distance of the experts' factors, which pulls them together
    seed : of vectors and network
    """

    name: ClassVar[str] = "task-moe"
    scope: ClassVar[Scope] = "layer"
    call_data: ClassVar[frozenset[str]] = frozenset({"task_ids_B"})
    survey_row: ClassVar[str | None] = "Task-level MoE"
    learns: ClassVar[int] = 80
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Custom",
        expert_data="Shared",
        routing_dataset="Expert",
        input_granularity="Task",
        depth_granularity="Module",
        expert_selection="Sparse",
        expert_aggregation="Output",
        generalization="Multiple",
        user_dataset="Multiple",
    )

    def __init__(
        self,
        *,
        tasks: int = 1,
        width: int = 64,
        form: str = "layer",
        hidden: int = 64,
        select: str = "straight-through",
        tau: float = 2.0,
        rate: float = 3e-4,
        floor: float = 0.1,
        explore: float = 0.0,
        distance: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if select not in get_args(Select):
            raise unknown_name("selection of router task-moe", select, get_args(Select))
        if form not in get_args(Form):
            raise unknown_name("form of router task-moe", form, get_args(Form))
        if min(tasks, width, hidden) < 1 or (form == "transformer" and hidden % HEADS):
            raise UsageError(
                "router task-moe: expected tasks, width and hidden of at least 1, and hidden a "
                f"multiple of {HEADS} for form=transformer; got tasks={tasks}, width={width} and "
                f"hidden={hidden}"
            )
        if not (0 < tau < math.inf and 0 < floor < math.inf and 0 <= rate < math.inf):
            raise UsageError(
                "router task-moe: expected tau and floor above 0 and rate of at least 0; got "
                f"tau={tau}, floor={floor} and rate={rate}"
            )
        if not (0 <= explore <= 1 and 0 <= distance < math.inf):
            raise UsageError(
                "router task-moe: expected explore from 0 to 1 and distance of at least 0; got "
                f"explore={explore} and distance={distance}"
            )
        self.tasks, self.width, self.form, self.hidden = tasks, width, form, hidden
        self.select, self.tau, self.rate, self.floor = select, tau, rate, floor
        self.explore, self.distance, self.seed = explore, distance, seed
        self.vectors_TD = nn.Parameter(random_vectors(tasks, width, seed=seed), requires_grad=False)
        self.register_buffer("reached", torch.zeros((), dtype=torch.long))
        self.network: TaskNetwork | None = None
        self._places: dict[str, int] = {}
        self._known: dict[str, str] = {}  # the bank's keys when it was prepared for
        self._bank: tuple[AdapterBank, ...] = ()  # a tuple: it is no submodule of the router

    reached: Tensor

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that are decided for, in the order of axis L."""
        return tuple(self._places)

    def set_vectors(self, vectors_TD: Tensor) -> None:
        """Start from given task vectors, (T, D); see ``crossroads.adapters.task_level.vectors``.

        A network that was made for another width is made anew.
        """
        self.tasks, width = vectors_TD.shape
        self.vectors_TD = nn.Parameter(vectors_TD.detach().clone().float(), requires_grad=False)
        if width != self.width:
            self.width = width
            if self.network is not None:
                self._make_network(len(self._known))

    def add_task(self, vector_D: Tensor) -> int:
        """Add a task with this vector and return its number. Raises InputError for its width."""
        if vector_D.shape != (self.width,):
            raise InputError(
                f"router task-moe: expected a vector of {self.width} numbers, got "
                f"{tuple(vector_D.shape)}; make it as those of the other tasks were made"
            )
        self.set_vectors(torch.cat([self.vectors_TD, vector_D[None].to(self.vectors_TD)]))
        return self.tasks - 1

    @property
    def is_learnt(self) -> bool:
        """Whether routes come from the network; controls have none."""
        return self.select not in _CONTROLS

    def take_routes(self, other: TaskMoE) -> None:
        """Take over another router's vectors and network, as copies."""
        self.set_vectors(other.vectors_TD)
        self.form, self.hidden = other.form, other.hidden
        self._places, self._known = dict(other._places), other._known
        self.network = copy.deepcopy(other.network)

    def temperature(self, step: int) -> float:
        """Return tau at a step of the training."""
        return max(self.tau * math.exp(-self.rate * step), self.floor)

    def prepare(self, bank: AdapterBank) -> None:
        """Make the network, unless there is one for these experts and blocks.

        What it learnt of experts that stay is kept; new ones start as drawn, and are warned of.
        Other blocks make a new network.
        """
        self._bank = (bank,)
        blocks = sorted({owner(self.scope, layer) for layer in bank.layers}, key=_depth)
        before, known = self.network, self._known
        same_blocks = tuple(blocks) == self.blocks
        self._places = {block: place for place, block in enumerate(blocks)}
        self._known = bank.keys_by_name
        if same_blocks and bank.is_as_in(known) and before is not None:
            return
        network = self._make_network(bank.n_experts)
        if before is None:
            return
        if same_blocks:
            network.take_over(before, partial(bank.carried, known))
        if not same_blocks or None in bank.places_in(known):
            _LOG.warning(
                "router task-moe: experts or blocks are new, and its network knows nothing of "
                "them; train it again"
            )

    def logits(self, call: Call) -> Tensor:
        """Return the logits of every sequence's task, (B, L, E), before the temperature.

        Raises InputError for a task that has no vector.
        """
        assert self.network is not None  # prepare has run
        found: Tensor = self.network(self._vectors(call))
        return found

    def route(self, given: RouteInput) -> Routing:
        call, place = given.call, self._places[owner(self.scope, given.module)]
        if call.training:
            self.reached.fill_(call.step)
        if not self.is_learnt:
            logits_BE = self._control(given, place)
            return _dense(softmax(logits_BE), logits_BE)
        logits_BE = self.logits(call)[:, place].masked_fill(~given.alive_E, -torch.inf)
        if self.select == "softmax" or call.training:
            return _dense(self._trained(logits_BE, call, place), logits_BE)
        index = first_maximum(logits_BE)[:, None, None, None]
        return Routing(
            weights=index.new_ones(index.shape).float(),
            index=index,
            logits=logits_BE[:, None, None],
        )

    def losses(self, decided: Mapping[str, Routing], call: Call) -> Mapping[str, AuxTerm]:
        """Return the mean distance of two experts, where it has a coefficient.

        Mean over pairs of the sum over layers of |A_a - A_b| + |B_a - B_b|, Frobenius norms.
        """
        if not self.distance:
            return {}
        pairs = list(itertools.combinations(range(len(self._known)), 2))
        total = self.vectors_TD.new_zeros(())
        for module in self._bank[0].layers.values():
            for factor in (module.a_ERI, module.b_EOR):
                apart = [factor[a] - factor[b] for a, b in pairs]
                total = total + torch.stack([d.norm() for d in apart]).sum()
        return {"distance": AuxTerm(total / max(1, len(pairs)), self.distance)}

    def is_static(self, call: Call) -> bool:
        return not call.training and self.select != "random-sequence"

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Train as many experts as there are, and the network from task vectors to routes.

        A task's vector is the centroid of its embedded training prompts and is not trained, so that
        an unknown task goes by its prompt's embedding.
        """
        from crossroads.adapters.task_level.training import Rates, train_tasks
        from crossroads.adapters.task_level.vectors import text_vectors

        prompts = [[row.prompt for row in t.rows["train"][:_TEXTS]] for t in lesson.tasks]
        self.set_vectors(text_vectors(prompts))
        bank = lesson.fresh_experts()
        train_tasks(
            lesson.model, bank, self, lesson.batches(), lesson.settings,
            rates=Rates(vectors=0.0), **lesson.training,
        )  # fmt: skip
        return bank

    def settings(self) -> Mapping[str, Any]:
        names = ("tasks", "width", "form", "hidden", "select", "tau", "rate", "floor", "explore",
                 "distance", "seed")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _make_network(self, experts: int) -> TaskNetwork:
        self.network = TaskNetwork(
            cast("Form", self.form),
            width=self.width,
            hidden=self.hidden,
            layers=len(self._places),
            experts=experts,
            seed=self.seed,
        ).requires_grad_(False)
        return self.network

    def _vectors(self, call: Call) -> Tensor:
        tasks_B = call.task_ids_B
        assert tasks_B is not None  # call_data promises it
        if int(tasks_B.max()) >= self.tasks or int(tasks_B.min()) < UNKNOWN:
            raise InputError(
                f"router task-moe: task ids go from 0 to {self.tasks - 1}, or -1 for a task by its "
                f"embedding; got {int(tasks_B.min())} to {int(tasks_B.max())}"
            )
        known_BD = self.vectors_TD[tasks_B.clamp_min(0)]
        is_known_B = tasks_B >= 0
        if bool(is_known_B.all()):
            return known_BD
        given_BG = call.embedding_BG
        if given_BG is None or given_BG.shape[-1] != self.width:
            raise InputError(
                f"router task-moe: a task of number -1 needs its vector of {self.width} numbers, "
                "embedding=... of the encoder that the other tasks' vectors are of"
            )
        return torch.where(is_known_B[:, None], known_BD, given_BG.to(known_BD))

    def _trained(self, logits_BE: Tensor, call: Call, place: int) -> Tensor:
        """Return weights with gradient; noise is a function of seed, step and block."""
        if not call.training:
            return softmax(logits_BE / self.temperature(int(self.reached)))
        draw = generator(call.seed, call.step, place)
        if self.select != "softmax":
            # -ln of an exponential draw is a Gumbel draw.
            drawn_BE = torch.empty(logits_BE.shape).exponential_(generator=draw)
            logits_BE = logits_BE - drawn_BE.log().to(logits_BE)
        weights_BE = softmax(logits_BE / self.temperature(call.step))
        if self.select == "straight-through":
            # In this order the difference is 0 bit by bit, and what is forward exactly one-hot.
            weights_BE = _one_hot(weights_BE) + (weights_BE - weights_BE.detach())
        if self.explore:
            is_drawn_B1 = torch.rand(len(weights_BE), 1, generator=draw) < self.explore
            other_BE = _one_hot(torch.rand(weights_BE.shape, generator=draw)).to(weights_BE)
            weights_BE = torch.where(is_drawn_B1.to(weights_BE.device), other_BE, weights_BE)
        return weights_BE

    def _control(self, given: RouteInput, place: int) -> Tensor:
        """Return logits of a decision that nothing is learnt for."""
        call, experts = given.call, given.bank.n_experts
        tasks_B = call.task_ids_B
        assert tasks_B is not None  # call_data promises it
        zeros_BE = torch.zeros(len(tasks_B), experts).masked_fill(~given.alive_E, -torch.inf)
        if self.select == "average":
            return zeros_BE
        if self.select == "random-sequence":
            odds_BE = torch.rand(
                zeros_BE.shape, generator=generator(self.seed, call.seed, call.step, place)
            )
        else:
            draws = {
                task: torch.rand(experts, generator=generator(self.seed, task, place))
                for task in tasks_B.unique().tolist()
            }
            odds_BE = torch.stack([draws[task] for task in tasks_B.tolist()])
        return zeros_BE.masked_fill(_one_hot(odds_BE + zeros_BE) == 0, -torch.inf)


def _depth(block: str) -> list[str | int]:
    """Return what puts blocks in the order of their numbers: 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", block)]


def _dense(weights_BE: Tensor, logits_BE: Tensor) -> Routing:
    return Routing(weights=weights_BE[:, None, None], logits=logits_BE[:, None, None])


def _one_hot(scores_BE: Tensor) -> Tensor:
    best_B1 = first_maximum(scores_BE.detach()).unsqueeze(-1)
    return torch.zeros_like(scores_BE).scatter(-1, best_B1, 1.0)
