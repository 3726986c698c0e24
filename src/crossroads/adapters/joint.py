"""Train experts and their router together, or one of them with the other frozen.

======================  ===============================================================
DynMoLE                 ``factors="all"``: experts and gates
LoRA-Mixer, stage H     ``factors="all"``, ``router_lr=0`` and a router with ``hard``
LoRA-Mixer, stage S     ``factors="none"``; or "all" with ``preserve``
FlyLoRA                 ``factors="up"``, ``router_lr=0``; its biases follow every step
======================  ===============================================================
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Router
from crossroads.adapters.routers.flylora import FlyLoRA
from crossroads.adapters.skills import factors as all_factors
from crossroads.adapters.texts import TextBatch
from crossroads.adapters.training import Group, TrainSettings, train_routed
from crossroads.core.errors import UsageError
from crossroads.core.progress import Progress

Factors = Literal["all", "up", "none"]


def train_jointly(
    model: nn.Module,
    bank: AdapterBank,
    router: Router,
    batch_of: Callable[[int], TextBatch],
    settings: TrainSettings,
    *,
    factors: Factors = "all",
    lr: float = 1e-3,
    router_lr: float | None = None,
    preserve: float = 0.0,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Train in place and return the loss of every step.

    Raises UsageError where nothing is left to train, and what ``training.train`` raises.

    Parameters
    ----------
    model : frozen causal language model; it is given back as it was
    batch_of : step -> batch, with ``labels_B`` where the router is hard
    factors : which are trained: A and B, B alone ("up") or none
    lr, router_lr : rates; the router's is ``lr`` unless given, and 0 leaves it frozen
    preserve : adds this times sum ||theta - theta_0||^2 over the factors that are trained
    checkpoint, identity, progress : of ``training.train``
    """
    trained = _factors(bank, factors)
    before = [parameter.detach().clone() for parameter in trained]

    def groups() -> list[Group]:
        found = [Group(parameters=trained, lr=lr)] if trained else []
        learnt = [*router.parameters()]
        if learnt and router_lr != 0:
            found.append(Group(parameters=learnt, lr=lr if router_lr is None else router_lr))
        if not found:
            raise UsageError(f"training: router {router.name} and no factors: nothing is trained")
        return found

    fly = router if isinstance(router, FlyLoRA) else None
    return train_routed(
        model,
        bank,
        router,
        batch_of,
        settings,
        groups=groups,
        charge=(lambda: preserve * drift(trained, before)) if preserve else None,
        around=fly.counting if fly else None,
        after=fly.update if fly else None,
        checkpoint=checkpoint,
        identity=identity,
        progress=progress,
    )


def drift(now: list[nn.Parameter], before: list[Tensor]) -> Tensor:
    """Return sum ||theta - theta_0||^2: what LoRA-Mixer charges experts that are not frozen."""
    squares = [(p - start).square().sum() for p, start in zip(now, before, strict=True)]
    return sum(squares[1:], squares[0])


def _factors(bank: AdapterBank, which: Factors) -> list[nn.Parameter]:
    if which == "all":
        return all_factors(bank)
    return [module.b_EOR for module in bank.layers.values()] if which == "up" else []
