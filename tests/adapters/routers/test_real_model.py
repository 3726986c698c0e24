"""Every router in the model that the shipped experts are of: it runs, and leaves no trace."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.collection.shipped import shipped_folder
from crossroads.adapters.fly import fly_bank
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import load_bank
from crossroads.adapters.routers import build_router, router_names
from crossroads.adapters.routers.lorahub import LoraHub
from crossroads.core.errors import MissingExtraError, UnavailableError
from crossroads.models.smollm2_torch import load_smollm2

NAMES = ("python", "tatoeba-deu", "gsm8k")
BLOCKS = ("model.layers.0.", "model.layers.29.")
IDS = torch.tensor([[504, 2365, 6354, 16438, 27003], [28, 198, 504, 617, 30]])
SPECS = {
    "best-single": "best-single:expert=gsm8k",
    "flylora": "flylora:k=1",
    "mogu": "mogu:width=4",
    "poly": "poly:tasks=2",
    "task-moe": "task-moe:tasks=2",
}


@pytest.fixture(scope="module")
def model() -> Any:
    try:
        return load_smollm2()
    except (MissingExtraError, UnavailableError) as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def base(model: Any) -> Tensor:
    return logits(model)


@pytest.fixture(scope="module")
def shipped() -> list[Expert]:
    """Three of the shipped experts in the first and the last block, where the seconds count."""
    bank = load_bank(shipped_folder())
    return [cut(bank.expert(name)) for name in NAMES]


def cut(expert: Expert) -> Expert:
    modules = {name: lora for name, lora in expert.modules.items() if name.startswith(BLOCKS)}
    gates = {name: gate for name, gate in expert.artifacts["gate"].items() if name in modules}
    artifacts = {"gate": gates, "activation": gates}  # a mean input is of a gate's shape
    return replace(expert, modules=modules, artifacts=artifacts)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def bank_for(name: str, shipped: list[Expert]) -> AdapterBank:
    bank = AdapterBank(shipped[:1] if name == "multitask" else shipped)
    if name != "flylora":
        return bank
    sizes = {layer: (module.inputs, module.outputs) for layer, module in bank.layers.items()}
    ranks = fly_bank(sizes, ranks=3, k=1)
    for module in ranks.layers.values():
        module.b_EOR.data.fill_(0.1)
    return ranks


@pytest.mark.parametrize("name", router_names())
def test_it_runs_in_the_real_model_and_leaves_no_trace(
    name: str, model: Any, base: Tensor, shipped: list[Expert], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    bank, router = bank_for(name, shipped), build_router(SPECS.get(name, name))
    modules = dict(model.named_modules())
    weights = {layer: modules[layer].weight.clone() for layer in bank.layers}
    try:
        routed = RoutedModel(model, bank, router)
    except MissingExtraError as missing:
        pytest.skip(str(missing))
    try:
        if isinstance(router, LoraHub):
            router.weights_E = torch.tensor([0.5, -0.5, 1.0])
        facts = {"task_ids": torch.tensor([0, 1]), "labels": torch.tensor([2, 0])}
        embedding = torch.stack([expert.embedding_G for expert in shipped[:2]])
        with calling(embedding=embedding, experts=["python", None], **facts):
            found = logits(model)
    finally:
        routed.unwrap()
    assert torch.isfinite(found).all()
    assert not torch.equal(found, base)  # experts have a say
    assert dict(model.named_modules()) == modules  # the very same ones
    for layer, weight in weights.items():
        assert torch.equal(modules[layer].weight, weight)
    assert torch.equal(logits(model), base)
