"""DARE: draws that can be repeated, and the same merge in the mean."""

from __future__ import annotations

import pytest
import torch

from crossroads.adapters.bank import AdapterBank, LoRA, ModuleBank
from crossroads.adapters.routers.dare import Dare
from tests.adapters import toys
from tests.adapters.routers.test_ties import logits


def test_draws_depend_on_the_seed_and_the_layer_alone() -> None:
    experts = toys.strangers(toys.tiny_llama(), 3)
    torch.manual_seed(1)
    first = logits("dare", experts)
    torch.manual_seed(2)
    assert torch.equal(logits("dare", experts), first)
    assert not torch.equal(logits("dare:seed=1", experts), first)
    state = torch.get_rng_state()
    Dare().merged(next(iter(AdapterBank(experts).layers.values())))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_dropped_is_made_up_for_in_the_mean() -> None:
    lora = LoRA(a_RI=torch.ones(1, 4000), b_OR=torch.ones(1, 1), scale=1.0)
    found = Dare(density=0.25, weight=1.0).merged(ModuleBank("layer", [lora])).a_RI
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert float(found.mean()) == pytest.approx(1.0, abs=0.1)
