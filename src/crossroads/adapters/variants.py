"""Train the two variants that MoGU blends, and the blend itself.

A variant is pushed to an extreme by a ratio of losses: of what it shall say over what it shall not
say, on the prompts where the two differ. The usable one complies with what is restricted, the safe
one refuses what is harmless. Source: MoGU (NeurIPS 2024) and its training code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.experts import Alone
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.joint import train_jointly
from crossroads.adapters.routers.mogu import MoGU
from crossroads.adapters.skills import factors
from crossroads.adapters.texts import TextBatch, answer_nll
from crossroads.adapters.training import Group, TrainSettings, train

FLOOR = 0.05  # nats a token below which the lower loss counts as this: the ratio would explode
Pair = tuple[TextBatch, TextBatch]  # the same prompts with wanted and with unwanted answers


def contrast(wanted: Tensor, unwanted: Tensor) -> Tensor:
    """Return the ratio of two mean losses, the lower one at least ``FLOOR``."""
    return wanted / unwanted.clamp_min(FLOOR)


def train_variant(
    model: torch.nn.Module,
    expert: Expert,
    pair_of: Callable[[int], Pair],
    settings: TrainSettings,
    *,
    lr: float,
) -> tuple[Expert, tuple[float, ...]]:
    """Return the variant after training, and the ratio of every step.

    Raises what ``training.train`` raises.

    Parameters
    ----------
    model : frozen causal language model; it is given back as it was
    pair_of : step -> prompts with the answers it shall give and those it shall not
    """
    bank = AdapterBank([expert])
    routed = RoutedModel(model, bank, Alone())

    def loss_of(step: int) -> Tensor:
        wanted, unwanted = pair_of(step)
        return contrast(
            answer_nll(routed.model, wanted).mean(), answer_nll(routed.model, unwanted).mean()
        )

    try:
        losses = train(loss_of, [Group(parameters=factors(bank), lr=lr)], settings, modules=[bank])
    finally:
        routed.unwrap()
    return bank.expert(expert.name), losses


def train_blend(
    model: torch.nn.Module,
    usable: Expert,
    safe: Expert,
    batch_of: Callable[[int], TextBatch],
    settings: TrainSettings,
    *,
    router: MoGU | None = None,
    lr: float = 5e-4,
) -> tuple[AdapterBank, MoGU]:
    """Return both variants as a bank, usable before safe, and the router that blends them.

    Raises what ``training.train`` raises.

    Parameters
    ----------
    batch_of : step -> prompts with the answers that shall be given; ``labels_B`` is 0 for harmless
        prompts and 1 for restricted ones
    """
    bank = AdapterBank([replace(usable, name="usable"), replace(safe, name="safe")])
    router = MoGU() if router is None else router
    train_jointly(model, bank, router, batch_of, settings, factors="none", lr=lr)
    return bank, router
