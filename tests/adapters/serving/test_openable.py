from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.serving.openable import gives_way, openable
from tests.adapters.saved import bank
from tests.adapters.toys import ids, tiny_llama

PROMPT = ids(1, 6)


def _logits(spec: str, *, opened: bool, expert: str | None = None) -> Tensor:
    model, made = tiny_llama(), bank()
    router = build_router(spec)
    RoutedModel(model, made, openable(router, made) if opened else router)
    with torch.no_grad(), calling(experts=None if expert is None else [expert]):
        found: Tensor = model(PROMPT).logits
    return found


@pytest.mark.parametrize("spec", ["phatgoose", "arrow", "uniform", "task-arithmetic"])
def test_a_router_decides_as_it_would_alone_until_an_expert_is_named(spec: str) -> None:
    assert torch.equal(_logits(spec, opened=True), _logits(spec, opened=False))
    own = _logits("named", opened=False, expert="words")
    torch.testing.assert_close(_logits(spec, opened=True, expert="words"), own)
    assert not torch.allclose(own, _logits(spec, opened=True), atol=1e-4)


@pytest.mark.parametrize(("spec", "does"), [("ties", False), ("named", False), ("arrow", True)])
def test_routers_without_weights_do_not_give_way(spec: str, does: bool) -> None:
    made = bank()
    router = build_router(spec)
    router.prepare(made)
    assert gives_way(router, made) is does
    assert (openable(router, made) is router) is not does
