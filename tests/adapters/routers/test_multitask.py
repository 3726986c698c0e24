"""Multitask: one adapter for everything, merged into the layers and handed out as one."""

from __future__ import annotations

from unittest.mock import patch

import torch

from crossroads.adapters import insertion
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import merged_by_router
from crossroads.adapters.learning import learn
from crossroads.adapters.routers import build_router
from tests.adapters import toys
from tests.adapters.collection.toys import task
from tests.adapters.saved import bank, base_model


def test_it_is_merged_into_the_layers_and_is_one_adapter_on_its_own() -> None:
    model, ids = toys.tiny_llama(), toys.ids()
    one = AdapterBank(toys.strangers(model, 1))
    routed = RoutedModel(model, one, build_router("multitask"))
    with patch.object(insertion, "combine", side_effect=AssertionError("not merged")):
        found = model(ids).logits
    routed.unwrap()
    base = model(ids).logits
    assert (found - base).abs().max() > 1e-2
    merged = merged_by_router(one, build_router("multitask"))
    RoutedModel(model, AdapterBank([merged]), build_router("uniform"))
    torch.testing.assert_close(model(ids).logits, found, atol=1e-5, rtol=1e-5)


def test_what_it_learns_has_all_ranks_together_and_the_scale_of_two() -> None:
    experts = bank(["words", "lines"])
    own, _ = learn("multitask", base_model(), experts, [task("words")], steps=1)
    assert own.layers.keys() == experts.layers.keys()
    for layer, module in own.layers.items():
        assert module.scale_E.tolist() == [2.0]
        assert module.rank == sum(experts.layers[layer].rank_E.tolist())
