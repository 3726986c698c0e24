from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import UsageError
from crossroads.prompts.composition import ExpertCache, ExpertTooLargeError, group_queue, replay

SIZES = {"a": 4, "b": 3, "c": 2, "d": 1}
EQUAL = dict.fromkeys("abcde", 1)
streams = st.lists(st.sampled_from("abcd"), max_size=60)


def served(order: list[str], resident: list[str], capacity: int) -> int:
    """Misses of an LRU cache that holds ``resident`` when the queue begins."""
    cache = ExpertCache(str, SIZES, capacity)
    for name in resident:
        cache.get(name)
    before = cache.counts.misses
    for name in order:
        cache.get(name)
    return cache.counts.misses - before


def test_a_queue_is_grouped_by_expert_with_residents_first() -> None:
    queue = ["a", "b", "a", "c", "b"]
    assert group_queue(queue) == [0, 2, 1, 4, 3]
    assert group_queue(queue, {"b"}) == [1, 4, 0, 2, 3]
    assert group_queue([]) == []


@given(streams, streams, st.integers(4, 12))
def test_grouping_a_queue_never_costs_a_swap(
    queue: list[str], before: list[str], capacity: int
) -> None:
    cache = ExpertCache(str, SIZES, capacity)
    for name in before:
        cache.get(name)
    order = group_queue(queue, cache.resident)
    assert sorted(order) == list(range(len(queue)))
    grouped = served([queue[n] for n in order], before, capacity)
    assert grouped == len(set(queue) - set(cache.resident))
    assert grouped <= served(queue, before, capacity)


@given(st.lists(st.sampled_from("abcde"), max_size=80), st.integers(1, 5))
def test_hindsight_needs_no_more_swaps_than_any_policy_at_equal_sizes(
    stream: list[str], capacity: int
) -> None:
    best = replay(stream, EQUAL, capacity, policy="belady")
    for policy in ("lru", "lfu"):
        counts = replay(stream, EQUAL, capacity, policy=policy)
        assert best.misses <= counts.misses
        assert counts.hits + counts.misses == counts.requests == len(stream)
    assert best.hits + best.misses == best.requests == len(stream)


def test_hindsight_on_a_known_stream() -> None:
    # Capacity 2: LRU misses at every step of a cycle of three, hindsight at every other one.
    cycle = list("abc" * 4)
    assert replay(cycle, EQUAL, 2).misses == 12
    assert replay(cycle, EQUAL, 2, policy="belady").misses == 7


def test_grouping_a_stream_saves_swaps() -> None:
    stream = list("abab" * 10)
    assert replay(stream, EQUAL, 1).swaps == 40
    assert replay(stream, EQUAL, 1, group=8).swaps == 6  # each queue starts where the last ended


def test_a_pinned_expert_is_loaded_once() -> None:
    counts = replay(list("abcabc"), EQUAL, 2, pinned=["a"])
    assert counts.prefetches == 1
    assert counts.hits == 2
    assert counts.misses == 4


@pytest.mark.parametrize("policy", ["lru", "lfu", "belady"])
def test_an_expert_larger_than_the_cache_is_named(policy: str) -> None:
    with pytest.raises(ExpertTooLargeError, match="'a' takes 4 bytes, the cache holds 3"):
        replay(["b", "a"], SIZES, 3, policy=policy)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="group >= 1, got 0"):
        replay(["a"], SIZES, 5, group=0)
    with pytest.raises(UsageError, match="unknown cache policy 'fifo'"):
        replay(["a"], SIZES, 5, policy="fifo")
    with pytest.raises(UsageError, match="'belady' needs group 1"):
        replay(["a"], SIZES, 5, policy="belady", group=2)
    with pytest.raises(UsageError, match="unknown expert 'z'"):
        replay(["z"], SIZES, 5, policy="belady")
