"""Answers whose first tokens are routed and whose rest the base model writes."""

from __future__ import annotations

import pytest
import torch

from crossroads.adapters.experts import Alone
from crossroads.adapters.handoff import handed_off
from crossroads.adapters.insertion import RoutedModel
from crossroads.core.errors import UsageError
from tests.adapters.toys import bank_for, ids, tiny_llama

Tensor = torch.Tensor


def routed_model() -> RoutedModel:
    model = tiny_llama()
    return RoutedModel(model, bank_for(model, 1, size=1.0), Alone())


def greedy(routed: RoutedModel, ids_BT: Tensor, most: int) -> Tensor:
    for _ in range(most):
        with torch.no_grad():
            best_B1 = routed.model(ids_BT).logits[:, -1:].argmax(-1)
        ids_BT = torch.cat([ids_BT, best_B1], 1)
    return ids_BT


def test_the_experts_write_the_first_tokens_and_the_base_model_the_rest() -> None:
    routed, asked = routed_model(), ids(3, 5)
    begun = greedy(routed, asked, 2)
    with routed.disabled():
        whole = greedy(routed, begun, 4)
        plain = greedy(routed, asked, 6)
    assert torch.equal(handed_off(routed, asked, most=6, first=2), whole[:, 5:])
    assert torch.equal(handed_off(routed, asked, most=6, first=0), plain[:, 5:])
    assert torch.equal(handed_off(routed, asked, most=6, first=9), greedy(routed, asked, 6)[:, 5:])
    assert not torch.equal(plain, greedy(routed, asked, 6))


def test_padding_on_the_left_changes_nothing() -> None:
    routed, asked = routed_model(), ids(1, 5)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), asked], 1)
    mask_BT = padded != 0
    found = handed_off(routed, padded, mask_BT, most=5, first=2)
    assert torch.equal(found, handed_off(routed, asked, most=5, first=2))


def test_nothing_follows_the_end_of_an_answer() -> None:
    routed, asked = routed_model(), ids(3, 5)
    free = handed_off(routed, asked, most=6, first=2)
    end = int(free[0, 1])
    routed.model.generation_config.eos_token_id = end
    found = handed_off(routed, asked, most=6, first=3)
    assert found[0].tolist()[1:] == [end] * (found.shape[1] - 1)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="first >= 0"):
        handed_off(routed_model(), ids(1, 3), most=4, first=-1)
    with pytest.raises(UsageError, match="most >= 1"):
        handed_off(routed_model(), ids(1, 3), most=0)
