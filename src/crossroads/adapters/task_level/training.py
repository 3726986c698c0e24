"""Training of task-level mixtures of experts, in one stage or in two.

One stage trains experts, network and task vectors together. Two stages: routes are learnt so; then
experts start again from nothing, network and vectors are frozen, and routing goes from the average
of all experts to the learnt one, as the temperature of a softmax falls from 300 to 1. Source:
Eliciting and Understanding Cross-Task Skills with Task-Level Mixture-of-Experts (Ye et al. 2022),
section 3.4 and its code, which takes 60,000 steps at rate 1e-4: the same share of the way here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.routers.task_moe import TaskMoE
from crossroads.adapters.skills import factors
from crossroads.adapters.texts import TextBatch
from crossroads.adapters.training import Group, TrainSettings, train_routed
from crossroads.core.progress import Progress

BatchOf = Callable[[int], TextBatch]
_HOT, _COLD = 300.0, 1.0
_COOLED = math.log(_HOT) / (60_000 * 1e-4)  # share of the steps after which the floor is reached


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of the three groups; the paper's experts are whole blocks, at 1e-5."""

    experts: float = 1e-3
    network: float = 1e-3
    vectors: float = 1e-2


def train_tasks(
    model: nn.Module,
    bank: AdapterBank,
    router: TaskMoE,
    batch_of: BatchOf,
    settings: TrainSettings,
    *,
    rates: Rates | None = None,
    frozen_routes: bool = False,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Train experts and, unless they are frozen, routes, in place; return the loss of every step.

    Raises what ``training.train`` raises.

    Parameters
    ----------
    model : frozen causal language model; it is given back as it was
    batch_of : step -> batch with the task of every sequence, ``task_ids_B``; tasks may be mixed
    rates : None = the defaults
    checkpoint, identity, progress : of ``training.train``
    """
    rates = rates or Rates()
    router.prepare(bank)  # its network exists from here on
    groups = [Group(parameters=factors(bank), lr=rates.experts)]
    if not frozen_routes and router.is_learnt:
        assert router.network is not None
        groups.append(Group(parameters=[*router.network.parameters()], lr=rates.network))
        groups.append(Group(parameters=[router.vectors_TD], lr=rates.vectors))
    return train_routed(
        model,
        bank,
        router,
        batch_of,
        settings,
        groups=groups,
        checkpoint=checkpoint,
        identity=identity,
        progress=progress,
    )


def second_stage(router: TaskMoE, *, steps: int) -> TaskMoE:
    """Return a router with the routes of ``router``, from average routing to learnt in ``steps``.

    Train it with fresh experts of the same names and ``frozen_routes``.
    """
    settings = {
        **router.settings(),
        "select": "softmax",
        "tau": _HOT,
        "floor": _COLD,
        "rate": math.log(_HOT / _COLD) / (_COOLED * steps),
        "explore": 0.0,
    }
    made = TaskMoE(**settings)
    made.take_routes(router)
    return made


def settled(router: TaskMoE) -> TaskMoE:
    """Return a router with the routes of ``router`` at the temperature it has reached.

    For what comes after training, few-shot fine-tuning above all: steps are counted from 0 again,
    and the temperature would fall once more.
    """
    tau = router.temperature(int(router.reached))
    made = TaskMoE(**{**router.settings(), "tau": tau, "rate": 0.0, "explore": 0.0})
    made.take_routes(router)
    return made


def two_stages(
    model: nn.Module,
    bank: AdapterBank,
    router: TaskMoE,
    batch_of: BatchOf,
    *,
    first: TrainSettings,
    second: TrainSettings,
    rates: Rates | None = None,
) -> tuple[AdapterBank, TaskMoE]:
    """Return experts and a router after both stages; ``router`` has learnt, ``bank`` is unchanged.

    Raises what ``training.train`` raises.
    """
    train_tasks(model, copy.deepcopy(bank), router, batch_of, first, rates=rates)
    again, experts = second_stage(router, steps=second.steps), copy.deepcopy(bank)
    train_tasks(model, experts, again, batch_of, second, rates=rates, frozen_routes=True)
    return experts, again
