"""Routings: forms, checks, and what routers share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.core.errors import InputError
from tests.adapters.toys import module_bank, rng


def routing(weights: list[float], index: list[int] | None = None, **more: bool) -> Routing:
    return Routing(
        weights=torch.tensor(weights)[None, None, None],
        index=None if index is None else torch.tensor(index)[None, None, None],
        **more,
    )


@given(experts=st.integers(1, 6), places=st.integers(1, 6), seed=st.integers(0, 99))
def test_places_become_dense_weights(experts: int, places: int, seed: int) -> None:
    places = min(places, experts)
    index = torch.stack([torch.randperm(experts, generator=rng(seed + i))[:places] for i in (0, 1)])
    weights = torch.rand(2, places, generator=rng(seed))
    dense = Routing(weights=weights[:, None, None], index=index[:, None, None]).dense(experts)
    assert dense.shape == (2, 1, 1, experts)
    for row in range(2):
        for place in range(places):
            assert dense[row, 0, 0, index[row, place]] == weights[row, place]
    assert torch.allclose(dense.sum(-1), weights.sum(-1)[:, None, None])


def test_dense_weights_carry_the_gradient_of_places() -> None:
    weights = torch.tensor([0.3, 0.7], requires_grad=True)
    made = Routing(weights=weights[None, None, None], index=torch.tensor([[[[2, 0]]]]))
    (made.dense(3) * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [100.0, 1.0]


def test_weights_need_four_axes() -> None:
    with pytest.raises(InputError, match=r"routing weights: expected axes .* got shape \(3,\)"):
        Routing(weights=torch.ones(3))


def test_places_need_as_many_weights() -> None:
    with pytest.raises(InputError, match="expected the shape of the weights"):
        Routing(weights=torch.ones(1, 1, 1, 2), index=torch.zeros(1, 1, 1, 3, dtype=torch.int64))


@pytest.mark.parametrize("mode", ["merge_delta", "merge_factors"])
def test_merging_refuses_weights_that_vary_over_positions(mode: str) -> None:
    with pytest.raises(InputError, match=f"routing mode {mode}: its weights must not vary"):
        Routing(weights=torch.ones(1, 5, 1, 2), mode=mode)  # type: ignore[arg-type]


def test_check_accepts_what_is_sound() -> None:
    bank = module_bank([2, 2, 0])
    routing([0.25, 0.75, 0.0]).check(bank)
    routing([0.0, 0.0, 0.0]).check(bank)  # nothing alive: the base model
    routing([2.0, -1.0, 0.0], normalised=False).check(bank)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (routing([float("nan"), 1.0, 0.0]), "weights are not finite"),
        (routing([0.5, 0.0, 0.5]), "an expert that does not adapt it has weight"),
        (routing([0.5, 0.25, 0.0]), "declared normalised do not add to 1"),
        (routing([0.5, 0.5], [0, 2]), "an expert that does not adapt it has weight"),
    ],
)
def test_check_names_what_is_wrong(wrong: Routing, message: str) -> None:
    with pytest.raises(InputError, match=f"routing of layer: .*{message}"):
        wrong.check(module_bank([2, 2, 0]))


def test_a_router_without_opinions() -> None:
    router = Router()
    call = Call(step=3)
    bank = module_bank([2])
    assert router.ahead(call, lambda: torch.zeros(1)) is call
    assert router.merged(bank) is None
    assert not router.is_static(call)
    assert router.settings() == {}
    assert router.losses({}, call) == {}
    given_ = RouteInput(module="layer", x_BTI=torch.zeros(1, 1, 6), bank=bank, call=call)
    with pytest.raises(NotImplementedError):
        router.route(given_)


def test_experts_that_are_not_there_give_their_weight_to_the_others() -> None:
    alive = torch.tensor([True, True, False])
    assert routing([0.25, 0.25, 0.5]).among(alive).weights.flatten().tolist() == [0.5, 0.5, 0.0]
    places = routing([0.75, 0.25], [2, 1]).among(alive)
    assert places.dense(3).flatten().tolist() == [0.0, 1.0, 0.0]
    loose = routing([0.25, 0.25, 0.5], normalised=False).among(alive)
    assert loose.weights.flatten().tolist() == [0.25, 0.25, 0.0]
    assert not routing([0.0, 0.0, 1.0]).among(alive).weights.any()


@given(seed=st.integers(0, 99))
def test_weights_that_lose_nothing_keep_every_bit(seed: int) -> None:
    weights = torch.softmax(torch.randn(2, 3, 1, 4, generator=rng(seed)), -1)
    weights = torch.nn.functional.pad(weights, (0, 1))
    kept = Routing(weights=weights).among(torch.tensor([True, True, True, True, False]))
    assert torch.equal(kept.weights, weights)
