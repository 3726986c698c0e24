"""Streams of routed prompts through an expert cache: grouping, replay, the optimum in hindsight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeVar

from crossroads.core.errors import UsageError
from crossroads.prompts.composition.cache import (
    CacheCounts,
    ExpertCache,
    check_sizes,
    checked_size,
)

H = TypeVar("H", bound=Hashable)

BELADY = "belady"


def group_queue(queue: Sequence[H], resident: Collection[H] = ()) -> list[int]:
    """Return an order of serving a queue of experts' names, as positions in it.

    Prompts of one expert come together, in their own order: first the experts that are resident,
    then the others, each by its first prompt. Serving a queue in this order loads every absent
    expert once, and no order can load fewer.
    """
    first = {name: n for n, name in reversed(list(enumerate(queue)))}
    return sorted(range(len(queue)), key=lambda n: (queue[n] not in resident, first[queue[n]], n))


def replay(
    stream: Sequence[str],
    sizes: Mapping[str, int],
    capacity: int,
    *,
    policy: str = "lru",
    group: int = 1,
    pinned: Sequence[str] = (),
) -> CacheCounts:
    """Return what a cache would do for a stream of requests, without loading anything.

    Raises as ``ExpertCache.get``; UsageError for a ``group`` below 1.

    Parameters
    ----------
    stream : the expert of each prompt, in order of arrival
    policy : ``lru``, ``lfu``, or ``belady``, which knows the stream and evicts the expert needed
        again last: the fewest swaps possible where all experts are of one size. It takes the stream
        as it comes: no grouping, no pins
    group : prompts that wait for each other and are then served by ``group_queue``, >= 1
    pinned : experts loaded beforehand and never evicted
    """
    if group < 1:
        raise UsageError(f"replay: expected group >= 1, got {group!r}")
    if policy == BELADY:
        if group > 1 or pinned:
            raise UsageError("replay: policy 'belady' needs group 1 and nothing pinned")
        return _in_hindsight(stream, sizes, capacity)
    cache = ExpertCache(str, sizes, capacity, policy=policy)
    for name in pinned:
        cache.pin(name)
    for start in range(0, len(stream), group):
        queue = stream[start : start + group]
        for n in group_queue(queue, cache.resident) if group > 1 else range(len(queue)):
            cache.get(queue[n])
    return cache.counts


def _in_hindsight(stream: Sequence[str], sizes: Mapping[str, int], capacity: int) -> CacheCounts:
    """Evict the expert whose next request is farthest away (Belady 1966)."""
    check_sizes(sizes, capacity)
    coming: dict[str, list[int]] = {}
    for n in reversed(range(len(stream))):
        coming.setdefault(stream[n], []).append(n)
    resident: dict[str, int] = {}
    counts: Counter[str] = Counter(requests=len(stream))
    for name in stream:
        coming[name].pop()
        if name in resident:
            counts["hits"] += 1
            continue
        size = checked_size(name, sizes, capacity)
        while sum(resident.values()) + size > capacity:
            farthest = max(resident, key=lambda e: coming[e][-1] if coming[e] else len(stream))
            del resident[farthest]
            counts["evictions"] += 1
        resident[name] = size
        counts["misses"] += 1
        counts["bytes_moved"] += size
    return CacheCounts(**counts)
