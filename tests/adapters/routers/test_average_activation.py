"""Average activation: PHATGOOSE's scoring with recorded means for gates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crossroads.adapters.activations import record_activation
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.core.errors import InputError
from tests.adapters import toys


def test_it_is_phatgoose_with_means_for_gates() -> None:
    model, ids = toys.tiny_llama(), toys.ids()
    experts = toys.strangers(model, 4, kinds=("activation",))
    bank = AdapterBank(experts)
    routed = RoutedModel(model, bank, build_router("average-activation:k=2"))
    found = model(ids).logits
    routed.unwrap()
    gated = AdapterBank(replace(e, artifacts={"gate": e.artifacts["activation"]}) for e in experts)
    RoutedModel(model, gated, Phatgoose(k=2))
    assert torch.equal(found, model(ids).logits)


def test_tokens_like_an_expert_s_own_go_to_it() -> None:
    model = toys.tiny_llama()
    own = [toys.ids(4, 6, seed=seed) % 10 + 10 * seed for seed in range(3)]  # words of their own
    experts = [
        record_activation(model, expert, [toys.batch(ids)])
        for expert, ids in zip(toys.strangers(model, 3), own, strict=True)
    ]
    routed = RoutedModel(model, AdapterBank(experts), build_router("average-activation:k=1"))
    for place, ids in enumerate(own):
        model(ids)
        chosen = torch.cat([r.index.flatten() for r in routed.last_routings.values()])
        assert float((chosen == place).float().mean()) > 0.5


def test_experts_without_recorded_means_are_refused() -> None:
    model = toys.tiny_llama()
    with pytest.raises(InputError, match="no 'activation'"):
        RoutedModel(
            model, AdapterBank(toys.strangers(model, 2)), build_router("average-activation")
        )
