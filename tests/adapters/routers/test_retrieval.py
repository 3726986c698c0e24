"""Retrieval: the nearest example's expert, for the whole prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.core.errors import InputError
from tests.adapters import toys

X, Y, Z = torch.eye(3)
BETWEEN = (X + Y) / 2**0.5


def experts() -> list[Expert]:
    """Examples along x and along y; the third has a description alone, along z."""
    first, second, third = toys.strangers(toys.tiny_llama(), 3)
    return [
        replace(first, examples_JG=torch.stack([X, BETWEEN])),
        replace(second, examples_JG=Y[None]),
        replace(third, embedding_G=Z),
    ]


def routed() -> RoutedModel:
    return RoutedModel(toys.tiny_llama(), AdapterBank(experts()), build_router("retrieval"))


def chosen(query_BG: Tensor) -> list[int]:
    model = routed()
    with calling(embedding=query_BG):
        model.model(toys.ids(len(query_BG)))
    found = {tuple(r.index.flatten().tolist()) for r in model.last_routings.values()}
    assert len(found) == 1  # all layers alike
    return [*found.pop()]


def test_the_nearest_single_example_decides() -> None:
    lean = torch.nn.functional.normalize(0.6 * X + 0.9 * Y, dim=0)  # nearest to BETWEEN
    assert chosen(torch.stack([X, Y, Z, lean])) == [0, 1, 2, 0]


def test_ties_go_to_the_lower_expert() -> None:
    assert chosen(torch.stack([-X - Y, torch.zeros(3)])) == [2, 0]


def test_the_output_is_that_of_the_expert_alone() -> None:
    model = routed()
    with calling(embedding=Y[None]):
        found = model.model(toys.ids(1)).logits
    alone = RoutedModel(toys.tiny_llama(), AdapterBank(experts()), build_router("named"))
    with calling(experts=["e1"]):
        torch.testing.assert_close(found, alone.model(toys.ids(1)).logits)


def test_what_is_missing_is_named() -> None:
    model = routed()
    with pytest.raises(InputError, match="needs 'embedding' of every batch"):
        model.model(toys.ids(1))
    with calling(embedding=torch.ones(1, 5)), pytest.raises(InputError, match="same encoder"):
        model.model(toys.ids(1))
    bank = AdapterBank(toys.strangers(toys.tiny_llama(), 2))
    with pytest.raises(InputError, match="'e0' has no embeddings"):
        RoutedModel(toys.tiny_llama(), bank, build_router("retrieval"))
