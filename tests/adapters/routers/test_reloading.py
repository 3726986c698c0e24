"""Routers that were saved with their bank decide as before when they are read again."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Router
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import load_bank, load_router, save_bank
from crossroads.adapters.routers import build_router
from tests.adapters import toys

AXES = torch.eye(4)
SPECS = (
    "phatgoose", "average-activation", "arrow:k=2", "retrieval", "glider:k=1",
    "best-single:expert=e1", "x-lora:by_layer=true", "lorahub", "task-arithmetic:weight=0.3",
    "poly:tasks=3", "task-moe:tasks=3", "task-moe:tasks=3:form=recurrent", "lora-mixer:k=2",
    "dynmole", "mogu:width=4",
)  # fmt: skip


def experts() -> list[Expert]:
    found = toys.strangers(toys.tiny_llama(), 4, kinds=("gate", "activation"))
    return [
        replace(expert, embedding_G=axis, examples_JG=axis[None])
        for expert, axis in zip(found, AXES, strict=True)
    ]


def logits(bank: AdapterBank, router: Router) -> Tensor:
    model = toys.tiny_llama()
    RoutedModel(model, bank, router)
    with torch.no_grad(), calling(embedding=AXES[:3], task_ids=torch.tensor([0, 2, 1])):
        found: Tensor = model(toys.ids()).logits
    return found


@pytest.mark.parametrize("spec", SPECS)
def test_logits_are_the_same_after_reading(
    spec: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    bank, router = AdapterBank(experts()), build_router(spec)
    router.prepare(bank)
    for number, values in enumerate(router.state_dict().values()):  # as if trained
        values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(number)))
    before = logits(bank, router)
    save_bank(tmp_path / "bank", bank, router=router)
    again = load_bank(tmp_path / "bank")
    assert torch.equal(logits(again, load_router(tmp_path / "bank", again)), before)
