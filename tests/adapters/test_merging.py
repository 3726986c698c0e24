"""Merges into one adapter a layer: one expert, unequal ranks, banks that change."""

from __future__ import annotations

import pytest
import torch

from crossroads.adapters.bank import AdapterBank, LoRA, ModuleBank
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.merging import merge
from crossroads.adapters.routers import build_router
from crossroads.core.errors import InputError
from tests.adapters import toys
from tests.adapters.routers.test_ties import logits

MERGES = ("ties", "ties:on=delta", "dare", "dare:elect=true", "dare:on=delta")


def test_a_merge_of_one_expert_with_everything_kept_is_that_expert() -> None:
    for scale in (3.0, -3.0):
        one = LoRA(a_RI=torch.randn(2, 6), b_OR=torch.randn(5, 2), scale=scale)
        bank = ModuleBank("layer", [None, one])
        for on in ("factors", "delta"):
            found = merge(bank, lambda given, by_E: given[0] * by_E[0], weight=1.0, on=on)
            torch.testing.assert_close(found.delta_OI(), one.delta_OI())


@pytest.mark.parametrize("spec", MERGES)
def test_merges_are_the_same_for_all_tokens_and_follow_the_bank(spec: str) -> None:
    model = toys.tiny_llama()
    bank = AdapterBank(toys.strangers(model, 3))
    RoutedModel(model, bank, build_router(spec))
    before = model(toys.ids()).logits
    last = bank.remove("e2")
    assert not torch.equal(model(toys.ids()).logits, before)
    bank.add(last)
    assert torch.equal(model(toys.ids()).logits, before)


def test_unequal_ranks_are_merged_as_deltas_only() -> None:
    model = toys.tiny_llama()
    experts = [*toys.experts(model, ["a"], rank=1), *toys.experts(model, ["b"], rank=3)]
    with pytest.raises(InputError, match="with :on=delta"):
        logits("ties", experts)
    assert torch.isfinite(logits("ties:on=delta", experts)).all()
