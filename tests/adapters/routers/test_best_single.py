"""Best single expert: that expert at every layer, chosen by loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.best_single import best_of
from crossroads.core.errors import InputError, UsageError
from tests.adapters import toys


def experts() -> list[Expert]:
    """Three experts; the second one leaves the first adapted layer alone."""
    first, second, third = toys.strangers(toys.tiny_llama(), 3)
    gone = next(iter(second.modules))
    kept = {layer: lora for layer, lora in second.modules.items() if layer != gone}
    return [first, replace(second, modules=kept), third]


def alone(name: str | None, ids: Tensor) -> Tensor:
    model = toys.tiny_llama()
    RoutedModel(model, AdapterBank(experts()), build_router("named"))
    with calling(experts=[name] * len(ids)):
        found: Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("name", ["e0", "e1", "e2"])
def test_the_best_single_expert_is_that_expert_at_every_layer(name: str) -> None:
    model = toys.tiny_llama()
    routed = RoutedModel(model, AdapterBank(experts()), build_router(f"best-single:expert={name}"))
    routed.checks = True
    torch.testing.assert_close(model(toys.ids()).logits, alone(name, toys.ids()))


def test_the_best_is_chosen_by_mean_loss_and_ties_go_to_the_earlier() -> None:
    assert best_of({"a": [3.0, 1.0], "b": [1.0, 2.0], "c": [2.0, 1.0]}) == "b"
    with pytest.raises(InputError, match="the same tasks"):
        best_of({"a": [1.0], "b": [1.0, 2.0]})
    with pytest.raises(InputError, match="at least one"):
        best_of({})


def test_an_expert_must_be_named() -> None:
    bank = AdapterBank(experts())
    with pytest.raises(UsageError, match="best-single:expert=NAME"):
        RoutedModel(toys.tiny_llama(), bank, build_router("best-single"))
    with pytest.raises(UsageError, match="unknown expert 'e9'"):
        RoutedModel(toys.tiny_llama(), bank, build_router("best-single:expert=e9"))
