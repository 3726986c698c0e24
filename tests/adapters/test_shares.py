from __future__ import annotations

import pytest
import torch

from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.shares import shares_of
from tests.adapters.saved import bank
from tests.adapters.toys import ids, tiny_llama


def _routed(spec: str) -> RoutedModel:
    return RoutedModel(tiny_llama(), bank(), build_router(spec))


@pytest.mark.parametrize("spec", ["phatgoose", "arrow", "uniform"])
def test_shares_add_to_one_over_experts_and_in_every_layer(spec: str) -> None:
    routed = _routed(spec)
    with torch.no_grad():
        routed.model(ids(1, 5))
    shares = shares_of(routed)
    assert sum(shares.experts.values()) == pytest.approx(1, abs=1e-5)
    assert list(shares.layers) == list(routed.last_routings)
    for layer in shares.layers.values():
        assert sum(layer.values()) == pytest.approx(1, abs=1e-5)
    for expert, share in shares.experts.items():
        by_layer = [layer[expert] for layer in shares.layers.values()]
        assert share == pytest.approx(sum(by_layer) / len(by_layer))
    assert [*shares.experts.values()] == sorted(shares.experts.values(), reverse=True)


def test_experts_without_weight_are_left_out() -> None:
    routed = _routed("named")
    with torch.no_grad(), calling(experts=["words"]):
        routed.model(ids(1, 5))
    assert shares_of(routed).experts == {"words": 1.0}
    with torch.no_grad(), calling(experts=[None]):
        routed.model(ids(1, 5))
    assert shares_of(routed).experts == {}


def test_a_merge_has_no_shares() -> None:
    routed = _routed("ties")
    with torch.no_grad():
        routed.model(ids(1, 5))
    assert shares_of(routed).experts == {} and shares_of(routed).layers == {}
