"""The steps from scores to a routing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossroads.adapters.routers import build_router
from crossroads.adapters.selection import one_hot, select
from crossroads.core.errors import UsageError
from tests.adapters.toys import rng

ALL = torch.ones(6, dtype=torch.bool)


def scores(seed: int, experts: int = 6) -> torch.Tensor:
    return torch.randn(2, 3, 1, experts, generator=rng(seed))


@given(seed=st.integers(0, 99), k=st.integers(1, 8), temperature=st.floats(0.1, 10.0))
def test_weights_are_the_softmax_of_the_kept_scores(seed: int, k: int, temperature: float) -> None:
    given_ = scores(seed)
    dense = select(given_, ALL, k=k, temperature=temperature).dense(6)
    kept = given_ >= given_.sort(-1, descending=True).values[..., min(k, 6) - 1 : min(k, 6)]
    by_hand = torch.softmax((given_ / temperature).masked_fill(~kept, -torch.inf), -1)
    torch.testing.assert_close(dense, by_hand)


@given(seed=st.integers(0, 99), alive=st.lists(st.booleans(), min_size=6, max_size=6))
def test_experts_that_do_not_adapt_a_layer_get_nothing(seed: int, alive: list[bool]) -> None:
    alive_E = torch.tensor(alive)
    routing = select(scores(seed), alive_E, k=2)
    dense = routing.dense(6)
    assert not dense[..., ~alive_E].any()
    total = 1.0 if any(alive) else 0.0
    torch.testing.assert_close(dense.sum(-1), torch.full((2, 3, 1), total))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_ties_go_to_the_lower_index(k: int) -> None:
    routing = select(torch.zeros(1, 1, 1, 6), ALL, k=k)
    assert routing.index is not None
    assert routing.index.flatten().tolist() == list(range(k))


def test_the_order_is_death_then_temperature_then_choice() -> None:
    given_ = torch.tensor([[[[9.0, 2.0, 1.0, 0.0]]]])
    alive = torch.tensor([False, True, True, True])
    dense = select(given_, alive, k=2, temperature=0.5).dense(4).flatten()
    expected = torch.softmax(torch.tensor([4.0, 2.0]), -1)
    torch.testing.assert_close(dense, torch.tensor([0.0, *expected.tolist(), 0.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_scores_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    routing = select(scores(0).to(dtype), ALL, k=2)
    assert routing.weights.dtype == torch.float32
    assert routing.logits is not None
    assert routing.logits.dtype == torch.float32


def test_gradient_reaches_kept_scores_alone() -> None:
    given_ = torch.tensor([[[[3.0, 2.0, 1.0]]]], requires_grad=True)
    select(given_, ALL[:3], k=2).weights[..., 0].sum().backward()
    assert given_.grad is not None
    kept = given_.grad.flatten()
    assert kept[0] > 0
    assert kept[1] < 0
    assert kept[2] == 0


def test_one_hot_gives_each_row_its_expert() -> None:
    dense = one_hot(torch.tensor([[[2]], [[0]]])).dense(3)
    assert dense.flatten(1).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


@given(seed=st.integers(0, 99), k=st.integers(1, 5), levels=st.integers(1, 9))
def test_few_tokens_are_chosen_for_as_many_are(seed: int, k: int, levels: int) -> None:
    drawn = torch.randint(0, levels, (1, 40, 1, 6), generator=rng(seed)).float()  # with ties
    many = select(drawn, ALL, k=k)
    few = select(drawn[:, :3], ALL, k=k, n_alive=6)
    assert many.index is not None
    assert few.index is not None
    assert torch.equal(few.index, many.index[:, :3])
    torch.testing.assert_close(few.weights, many.weights[:, :3])


@pytest.mark.parametrize("spec", ["phatgoose:k=0", "arrow:k=-1", "x-lora:temperature=0"])
@pytest.mark.parametrize("temperature", ["0", "-1", "inf", "nan"])
def test_settings_that_mean_nothing_are_refused(spec: str, temperature: str) -> None:
    name = spec.partition(":")[0]
    with pytest.raises(UsageError, match=f"router {name}: expected k of at least . and a temp"):
        build_router(spec)
    with pytest.raises(UsageError, match="temperature above 0"):
        build_router(f"{name}:temperature={temperature}")
