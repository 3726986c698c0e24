from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from crossroads.core.errors import UsageError  # noqa: E402
from crossroads.moe.capacity import Capacity, overflow, queue_positions  # noqa: E402

Tensor = torch.Tensor
few = settings(max_examples=30, deadline=None)


def everybody(idx_GSK: Tensor) -> Tensor:
    return torch.ones(idx_GSK.shape[:2], dtype=torch.bool)


def choices(seed: int, groups: int, size: int, k: int, n_experts: int) -> Tensor:
    """Distinct experts per token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(groups, size, n_experts, generator=generator).argsort(-1)[..., :k]


# Gates (.6, .4), (.7, .3), (.2, .8) of the worked example, E = 2, K = 2, C = 2.
WORKED = torch.tensor([[[0, 1], [0, 1], [1, 0]]])


def test_the_queues_of_the_worked_example() -> None:
    assert queue_positions(WORKED, 2).tolist() == [[[0, 1], [1, 2], [0, 2]]]
    room = Capacity(factor=2 / 3, rounding="round")
    lost = overflow(WORKED, everybody(WORKED), 2, room, training=True)
    assert room.slots(3, 2, 2, training=True) == 2
    assert lost.tolist() == [[[False, False], [False, True], [False, True]]]


def test_priority_lets_the_surest_token_queue_first() -> None:
    weight = torch.tensor([[0.6, 0.7, 0.8]])
    assert queue_positions(WORKED, 2, weight).tolist() == [[[1, 2], [0, 1], [0, 2]]]
    equal = torch.zeros(1, 3)
    assert torch.equal(queue_positions(WORKED, 2, equal), queue_positions(WORKED, 2))


@few
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 7),
    n_experts=st.integers(1, 4),
    has_priority=st.booleans(),
    data=st.data(),
)
def test_queues_equal_the_written_out_loop(
    seed: int, size: int, n_experts: int, has_priority: bool, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n_experts))
    idx = choices(seed, 2, size, k, n_experts)
    gone = torch.rand(idx.shape, generator=torch.Generator().manual_seed(seed)) < 0.2
    idx = idx.masked_fill(gone, -1)
    priority = torch.round(4 * torch.rand(2, size, generator=torch.Generator().manual_seed(seed)))
    expected = torch.full_like(idx, -1)
    for group in range(2):
        order = list(range(size))
        if has_priority:
            order.sort(key=lambda token: -float(priority[group, token]))
        waiting = [0] * n_experts
        for place in range(k):
            for token in order:
                expert = int(idx[group, token, place])
                if expert >= 0:
                    expected[group, token, place] = waiting[expert]
                    waiting[expert] += 1
    found = queue_positions(idx, n_experts, priority if has_priority else None)
    assert torch.equal(found, expected)


@few
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 9),
    n_experts=st.integers(1, 4),
    data=st.data(),
)
def test_nothing_is_lost_with_room_for_everybody(
    seed: int, size: int, n_experts: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n_experts))
    idx = choices(seed, 2, size, k, n_experts)
    room = Capacity(factor=n_experts / k)
    assert not bool(overflow(idx, everybody(idx), n_experts, room, training=True).any())


def test_nothing_is_lost_by_balanced_routing_at_factor_one() -> None:
    idx = (torch.arange(12) % 4).reshape(1, 12, 1)
    assert not bool(overflow(idx, everybody(idx), 4, Capacity(factor=1.0), training=True).any())


def test_room_counts_real_tokens_only() -> None:
    idx = torch.zeros(2, 6, 1, dtype=torch.int64)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    idx[~mask] = -1
    lost = overflow(idx, mask, 2, Capacity(factor=1.0), training=True)
    assert lost.sum((1, 2)).tolist() == [3, 1]


def test_experts_without_a_queue_lose_nobody() -> None:
    idx = torch.zeros(1, 6, 1, dtype=torch.int64)
    no_queue = torch.tensor([True, False])
    lost = overflow(
        idx, everybody(idx), 2, Capacity(factor=0.5), training=True, unlimited_E=no_queue
    )
    assert not bool(lost.any())


@pytest.mark.parametrize(("rounding", "slots"), [("ceil", 3), ("floor", 2), ("round", 2)])
def test_half_a_slot_is_rounded_as_asked(rounding: str, slots: int) -> None:
    assert Capacity(factor=1.0, rounding=rounding).slots(5, 1, 2, training=True) == slots


def test_a_product_that_is_whole_up_to_rounding_noise_is_not_rounded_up() -> None:
    # 50 * 1.1 / 1 is 55.00000000000001 in binary arithmetic.
    assert Capacity(factor=1.1).slots(50, 1, 1, training=True) == 55


def test_slots_respect_multiple_minimum_and_the_factor_of_evaluation() -> None:
    room = Capacity(factor=1.05, eval_factor=4.0, multiple=4)
    assert room.slots(16, 1, 8, training=True) == 4
    assert room.slots(16, 1, 8, training=False) == 8
    assert Capacity(factor=0.01, minimum=4).slots(16, 1, 8, training=True) == 4
    assert Capacity(factor=1.0, multiple=4).slots(5, 1, 1, training=True) == 8  # up, never down


@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_an_infinite_factor_of_evaluation_has_room_for_every_place(tokens: int) -> None:
    room = Capacity(factor=0.5, eval_factor=math.inf)
    assert room.slots(tokens, 2, 8, training=False) == max(2 * tokens, 1)
    assert room.slots(8, 1, 8, training=True) == 1
    idx = torch.zeros(1, 9, 1, dtype=torch.int64)
    assert not bool(overflow(idx, everybody(idx), 8, room, training=False).any())


@pytest.mark.parametrize(
    ("change", "places", "keeps"),
    [
        ({}, 1, True),
        ({}, 2, False),
        ({"priority": "gate"}, 1, False),
        ({"group": "batch"}, 1, False),
        ({"eval_factor": 4.0}, 1, False),
        ({"eval_factor": None}, 1, False),
    ],
)
def test_one_queue_alone_keeps_the_order_of_a_decoder(
    change: dict[str, Any], places: int, keeps: bool
) -> None:
    room = Capacity(**{"factor": 1.0, "eval_factor": math.inf, **change})
    assert room.keeps_order(places) == keeps


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 0.0},
        {"factor": float("nan")},
        {"factor": 1.0, "eval_factor": -1.0},
        {"factor": 1.0, "multiple": 0},
        {"factor": 1.0, "minimum": 0},
        {"factor": math.inf},
        {"factor": 1.0, "eval_factor": math.nan},
        {"factor": 1.0, "rounding": "nearest"},
        {"factor": 1.0, "priority": "weight"},
        {"factor": 1.0, "group": "seq"},
    ],
)
def test_a_capacity_that_holds_nobody_or_is_unknown_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="capacity"):
        Capacity(**wrong)
