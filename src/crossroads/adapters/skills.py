"""Skills: LoRA experts that are trained together, mixed by task, and adapted to a new task.

A bank of skills is an ``AdapterBank`` whose experts start equal in size and scale 1 / r. They are
trained with the logits of ``poly`` at two rates: at the adapters' rate the logits would never leave
their start. A new task then gets

====  =====================================================  ==================================
full  a fresh row of logits and a copy of the bank, trained  E r (I + O) + H E numbers a layer
z     a fresh row of logits alone (MHR-z)                    H E numbers a layer
mu    the mean of all skills as one adapter (MHR-mu)         r (I + O) numbers a layer
====  =====================================================  ==================================

Source: Multi-Head Adapter Routing for Cross-Task Generalization (Caccia et al. 2023), sections 3
and 4. Departure: the authors' code trains the whole bank under equal weights for ``mu``; we train
its mean, which is the same function and under Adam, whose steps do not depend on the size of a
gradient, the same path.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.base_layers import sizes_of
from crossroads.adapters.routers.poly import Poly
from crossroads.adapters.texts import TextBatch
from crossroads.adapters.training import Group, TrainSettings, train_routed
from crossroads.core.errors import InputError, unknown_name
from crossroads.core.progress import Progress

Start = Literal["kaiming", "gain"]
Variant = Literal["full", "z", "mu"]
BatchOf = Callable[[int], TextBatch]
RATE, LOGIT_RATE = 1e-3, 0.1  # of the authors' runs on T0 and NI


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """Skills and a router for one new task, number 0.

    Attributes
    ----------
    bank, router : put them into the model with ``RoutedModel``
    losses : of every step
    n_trained : how many numbers were trained
    """

    bank: AdapterBank
    router: Poly
    losses: tuple[float, ...]
    n_trained: int


def new_skills(
    model: nn.Module,
    *,
    targets: Sequence[str],
    skills: int,
    rank: int,
    heads: int = 1,
    start: Start = "kaiming",
    seed: int = 0,
) -> AdapterBank:
    """Return a bank of skills that change nothing yet: A drawn, B zero, scale 1 / rank.

    Raises InputError where the model has no such layer, or ``heads`` does not divide one's size.

    Parameters
    ----------
    targets : last parts of the names of linear layers, such as "q_proj"
    heads : blocks that inputs and outputs are cut into; 1 is Poly
    start : A from U(-b, b), "kaiming" with b = 1 / sqrt(I / H), of a head's slice of the inputs, or
        "gain" with b = 1 / sqrt(3 I)
    """
    return skills_of(
        sizes_of(model, targets), skills=skills, rank=rank, heads=heads, start=start, seed=seed
    )


def skills_of(
    sizes: Mapping[str, tuple[int, int]],
    *,
    skills: int,
    rank: int,
    heads: int = 1,
    start: Start = "kaiming",
    seed: int = 0,
) -> AdapterBank:
    """Do as ``new_skills`` for layers by full name, with their inputs and outputs."""
    if start not in get_args(Start):
        raise unknown_name("start", start, get_args(Start))
    generator = torch.Generator().manual_seed(seed)

    def drawn(inputs: int, outputs: int) -> LoRA:
        bound = (heads / inputs) ** 0.5 if start == "kaiming" else (3 * inputs) ** -0.5
        a_RI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        return LoRA(a_RI=a_RI, b_OR=torch.zeros(outputs, rank), scale=1 / rank)

    return AdapterBank(
        [
            Expert(name=f"skill-{e}", modules={name: drawn(*size) for name, size in sizes.items()})
            for e in range(skills)
        ],
        heads=heads,
    )


def factors(bank: AdapterBank) -> list[nn.Parameter]:
    """Return A and B of every layer."""
    return [p for module in bank.layers.values() for p in (module.a_ERI, module.b_EOR)]


def poly_with(bank: AdapterBank, logits: Mapping[str, Tensor]) -> Poly:
    """Return a router with given logits, layer -> (T, H, E), such as ``layout.read_poly`` reads.

    Raises InputError where they are not those of the bank's layers, heads and experts.
    """
    tasks = {len(z_THE) for z_THE in logits.values()}
    if len(tasks) != 1 or logits.keys() != bank.layers.keys():
        raise InputError("poly: expected logits of equally many tasks for every layer of the bank")
    router = Poly(tasks=tasks.pop())
    router.prepare(bank)
    for layer, z_THE in logits.items():
        own_THE = router.logits_of(layer)
        if own_THE.shape != z_THE.shape:
            raise InputError(
                f"poly: logits of {layer}: expected shape {tuple(own_THE.shape)}, got "
                f"{tuple(z_THE.shape)}"
            )
        own_THE.data.copy_(z_THE)
    return router


def groups(
    bank: AdapterBank, router: Poly, *, lr: float = RATE, logit_lr: float = LOGIT_RATE
) -> list[Group]:
    """Return the two groups of parameters: skills, and the logits at a rate of their own.

    Equal weights whatever the task leave the logits out.
    """
    found = [Group(parameters=factors(bank), lr=lr)]
    if not router.uniform:
        found.append(Group(parameters=[*router.parameters()], lr=logit_lr))
    return found


def train_skills(
    model: nn.Module,
    bank: AdapterBank,
    router: Poly,
    batch_of: BatchOf,
    settings: TrainSettings,
    *,
    lr: float = RATE,
    logit_lr: float = LOGIT_RATE,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Train skills and logits together, in place, and return the loss of every step.

    Raises what ``training.train`` raises.

    Parameters
    ----------
    model : frozen causal language model; it is given back as it was
    batch_of : step -> batch with the task of every sequence, ``task_ids_B``
    checkpoint, identity, progress : of ``training.train``
    """
    router.prepare(bank)  # its logits exist from here on
    rates = groups(bank, router, lr=lr, logit_lr=logit_lr)
    return train_routed(
        model,
        bank,
        router,
        batch_of,
        settings,
        groups=rates,
        checkpoint=checkpoint,
        identity=identity,
        progress=progress,
    )


def adapt(
    model: nn.Module,
    bank: AdapterBank,
    batch_of: BatchOf,
    settings: TrainSettings,
    *,
    variant: Variant = "z",
    grain: str = "fine",
    lr: float = RATE,
    logit_lr: float = LOGIT_RATE,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> Adapted:
    """Fit trained skills to one new task; see the module's table. ``bank`` is left as it is.

    Raises UsageError for an unknown variant and what ``training.train`` raises.

    Parameters
    ----------
    batch_of : step -> batch of the new task; its ``task_ids_B`` are not read
    grain : of the new router, see ``Poly``
    checkpoint, identity, progress : of ``training.train``
    """
    if variant not in get_args(Variant):
        raise unknown_name("variant", variant, get_args(Variant))
    skills = (
        mean_skill(bank) if variant == "mu" else bank if variant == "z" else copy.deepcopy(bank)
    )
    router = Poly(tasks=1, grain=grain, uniform=variant == "mu", seed=settings.seed)
    router.prepare(skills)
    rates = groups(skills, router, lr=lr, logit_lr=logit_lr)
    if variant == "z":
        rates = rates[1:]

    def of_one_task(step: int) -> TextBatch:
        batch = batch_of(step)
        return replace(batch, task_ids_B=torch.zeros(len(batch.ids_BT), dtype=torch.long))

    losses = train_routed(
        model,
        skills,
        router,
        of_one_task,
        settings,
        groups=rates,
        checkpoint=checkpoint,
        identity=identity,
        progress=progress,
    )
    trained = sum(p.numel() for group in rates for p in group.parameters)
    return Adapted(bank=skills, router=router, losses=losses, n_trained=trained)


@torch.no_grad()
def mean_skill(bank: AdapterBank) -> AdapterBank:
    """Return a bank of one skill, the mean of the factors of all of them.

    Raises InputError for experts that were not made by ``new_skills``: where a layer has some of
    them alone, or in different ranks or scales, the mean of factors is not one adapter.
    """
    modules = {}
    for name, module in bank.layers.items():
        kinds = {(int(r), float(s)) for r, s in zip(module.rank_E, module.scale_E, strict=True)}
        if len(kinds) > 1:
            raise InputError(f"mean skill: experts differ in rank or scale at {name}")
        modules[name] = LoRA(
            a_RI=module.a_ERI.detach().mean(0),
            b_OR=module.b_EOR.detach().mean(0),
            scale=float(module.scale_E[0]),
        )
    return AdapterBank([Expert(name="mean", modules=modules)], heads=bank.heads)


@torch.no_grad()
def head_entropy(router: Poly, bank: AdapterBank) -> float:
    """Return the mean entropy of the weights of all tasks, heads and layers, over its maximum."""
    found = []
    for layer in bank.layers:
        gates_THE = torch.sigmoid(router.logits_of(layer).float())
        weights_THE = gates_THE / gates_THE.sum(-1, keepdim=True)
        found.append(torch.special.entr(weights_THE).sum(-1).mean())
    return float(torch.stack(found).mean()) / math.log(max(2, bank.n_experts))
