"""One trainer for adapters, gates and routers: parameter groups, a schedule, resumable.

What is trained is whatever the groups hold; the caller computes the loss of a step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Router
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.texts import TextBatch, answer_nll
from crossroads.core.errors import DivergedError, InputError
from crossroads.core.files import replacing
from crossroads.core.progress import Progress


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long and how fast.

    Attributes
    ----------
    steps : optimiser steps; ``warmup`` of them raise the rate linearly from 0
    decay : what follows the warm-up: "linear" down to 0, or "constant"
    clip : largest norm of the gradient of all groups together; None = not clipped
    betas, eps : of AdamW
    seed : the caller's batches and noise are functions of (seed, step)
    """

    steps: int
    warmup: int = 5
    decay: Literal["linear", "constant"] = "linear"
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    seed: int = 0

    def factor(self, step: int) -> float:
        """Return what the rates are multiplied with at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.decay == "constant":
            return 1.0
        return max(0.0, (self.steps - step) / max(1, self.steps - self.warmup))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that share a rate. Routers often need one a hundred times that of adapters."""

    parameters: Sequence[nn.Parameter]
    lr: float
    weight_decay: float = 0.0


StepLoss = Callable[[int], Tensor]
AfterStep = Callable[[int], None]


def train(
    loss_of: StepLoss,
    groups: Sequence[Group],
    settings: TrainSettings,
    *,
    modules: Sequence[nn.Module] = (),
    after: AfterStep | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    every: int = 30,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Run AdamW and return the loss of every step; all is frozen again afterwards.

    Raises DivergedError naming the step where the loss or the gradient is not finite; InputError
    where a checkpoint is of another run.

    Parameters
    ----------
    loss_of : step -> scalar with gradient; batches and noise are functions of the step
    modules : whose parameters and buffers a checkpoint holds: the bank and the router
    after : called after every step, for state that is not trained by gradient
    checkpoint : file written every ``every`` steps and removed by the caller; a run that finds one
        of the same settings and ``identity`` (a name for model and data) goes on from it
    progress : called with steps done and steps in all
    """
    parameters = [p for group in groups for p in group.parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        [
            {"params": list(g.parameters), "lr": g.lr, "weight_decay": g.weight_decay}
            for g in groups
        ],
        betas=settings.betas,
        eps=settings.eps,
    )
    rates = [group.lr for group in groups]
    key = _key(settings, rates, identity)
    try:
        first, losses = _resume(checkpoint, key, modules, optimiser)
        for step in range(first, settings.steps):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * settings.factor(step)
            losses.append(_step(loss_of, step, optimiser, parameters, settings.clip))
            if after is not None:
                after(step)
            if progress is not None:
                progress(step + 1, settings.steps)
            if checkpoint is not None and (step + 1) % every == 0:
                _keep(checkpoint, key, modules, optimiser, losses)
    finally:  # also where it is stopped or diverges
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
    return tuple(losses)


def _step(
    loss_of: StepLoss,
    step: int,
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    clip: float | None,
) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss = loss_of(step)
    loss.backward()
    value = loss.item()
    size = nn.utils.clip_grad_norm_(parameters, clip or math.inf).item()
    if not (math.isfinite(value) and math.isfinite(size)):
        raise DivergedError(
            f"training: loss {value:.4g}, gradient {size:.4g} at step {step}; lower the rate"
        )
    optimiser.step()
    return value


def steps_done(checkpoint: Path) -> int:
    """Return how many steps a checkpoint of ``train`` holds; 0 without one."""
    if not checkpoint.is_file():
        return 0
    return len(torch.load(checkpoint, weights_only=True, mmap=True)["losses"])


def batch_loss(routed: RoutedModel, batch: TextBatch, *, step: int, seed: int) -> Tensor:
    """Return mean NLL of a training batch's answers plus the router's auxiliary losses."""
    with calling(
        mask=batch.mask_BT,
        task_ids=batch.task_ids_B,
        labels=batch.labels_B,
        embedding=batch.embedding_BG,
        training=True,
        step=step,
        seed=seed,
    ):
        return answer_nll(routed.model, batch).mean() + routed.aux_loss()


def train_routed(
    model: nn.Module,
    bank: AdapterBank,
    router: Router,
    batch_of: Callable[[int], TextBatch],
    settings: TrainSettings,
    *,
    groups: Sequence[Group] | Callable[[], Sequence[Group]],
    charge: Callable[[], Tensor] | None = None,
    around: Callable[[RoutedModel], AbstractContextManager[None]] | None = None,
    after: AfterStep | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Put a bank and a router into a model, train the groups on its answers, take them out again.

    Returns the loss of every step. Raises what ``train`` raises.

    Parameters
    ----------
    model : frozen causal language model; it is given back as it was
    batch_of : step -> batch, with what the router must be told
    groups : parameters of the bank and of the router; a function is called when the router has been
        prepared for the bank, and has its own
    charge : what every step's loss is raised by
    around : what the whole training runs inside, made of the model with the router in it
    after, checkpoint, identity, progress : of ``train``
    """
    routed = RoutedModel(model, bank, router)

    def loss_of(step: int) -> Tensor:
        loss = batch_loss(routed, batch_of(step), step=step, seed=settings.seed)
        return loss if charge is None else loss + charge()

    try:
        with nullcontext() if around is None else around(routed):
            return train(
                loss_of,
                groups() if callable(groups) else groups,
                settings,
                modules=[bank, router],
                after=after,
                checkpoint=checkpoint,
                identity=identity,
                progress=progress,
            )
    finally:
        routed.unwrap()


def _key(settings: TrainSettings, rates: Sequence[float], identity: str) -> str:
    told = json.dumps([asdict(settings), list(rates), identity], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()


def _keep(
    path: Path,
    key: str,
    modules: Sequence[nn.Module],
    optimiser: torch.optim.Optimizer,
    losses: Sequence[float],
) -> None:
    state = {
        "key": key,
        "modules": [module.state_dict() for module in modules],
        "optimiser": optimiser.state_dict(),
        "losses": list(losses),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        torch.save(state, draft)


def _resume(
    path: Path | None, key: str, modules: Sequence[nn.Module], optimiser: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    if path is None or not path.is_file():
        return 0, []
    state = torch.load(path, weights_only=True)
    if state["key"] != key or len(state["modules"]) != len(modules):
        raise InputError(f"{path}: is of a run with other settings or data; remove it or move it")
    for module, kept in zip(modules, state["modules"], strict=True):
        module.load_state_dict(kept)
    optimiser.load_state_dict(state["optimiser"])
    return len(state["losses"]), state["losses"]
