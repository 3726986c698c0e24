"""Oracle: every sequence its own expert."""

from __future__ import annotations

import pytest
import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.core.errors import InputError
from tests.adapters import toys
from tests.adapters.routers.test_best_single import alone, experts


def test_the_oracle_gives_every_sequence_its_own_expert() -> None:
    model = toys.tiny_llama()
    routed = RoutedModel(model, AdapterBank(experts()), build_router("oracle"))
    routed.checks = True
    ids = toys.ids(4)
    with calling(labels=torch.tensor([2, -1, 1, 0])):
        found = model(ids).logits
    for row, name in enumerate(["e2", None, "e1", "e0"]):
        wanted = alone(name, ids[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], wanted, atol=1e-5, rtol=0)


def test_labels_out_of_range_are_named() -> None:
    model = toys.tiny_llama()
    RoutedModel(model, AdapterBank(experts()), build_router("oracle"))
    with pytest.raises(InputError, match="needs 'labels'"):
        model(toys.ids())
    with calling(labels=torch.tensor([0, 1, 3])), pytest.raises(InputError, match="one of 0"):
        model(toys.ids())
