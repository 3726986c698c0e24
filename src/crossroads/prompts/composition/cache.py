"""Expert weights in fast memory: what to keep when not all experts fit.

Switching experts means moving weights, which Composition of Experts (2024, arXiv 2412.01868)
serves from a three-tier memory. ``ExpertCache`` keeps experts within a capacity in bytes, whatever
loads them; ``crossroads.prompts.composition.stream`` replays streams of requests through it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from crossroads.core.errors import InputError, UsageError, unknown_name

T = TypeVar("T")

POLICIES = ("lru", "lfu")
_AGEING = 10  # uses a resident expert: then all counts are halved, so that old fame fades


class ExpertTooLargeError(InputError):
    """An expert that does not fit even into the empty cache, or beside the pinned ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheCounts:
    """What a cache did so far.

    ``requests`` = ``hits`` + ``misses``; every miss and every prefetch that was not resident is a
    swap: weights moved in, ``bytes_moved`` in all. ``evictions`` counts experts moved out.
    """

    requests: int = 0
    hits: int = 0
    misses: int = 0
    prefetches: int = 0
    evictions: int = 0
    bytes_moved: int = 0

    @property
    def swaps(self) -> int:
        return self.misses + self.prefetches

    @property
    def swaps_per_1k(self) -> float:
        """Swaps per 1,000 requests; 0 before the first."""
        return 1000 * self.swaps / self.requests if self.requests else 0.0

    @property
    def bytes_per_1k(self) -> float:
        """Bytes moved per 1,000 requests; 0 before the first."""
        return 1000 * self.bytes_moved / self.requests if self.requests else 0.0


@dataclass(kw_only=True, slots=True)
class _Entry(Generic[T]):
    size: int
    expert: T | None = None
    error: BaseException | None = None
    is_held: bool = False  # takes memory: being loaded, or loaded
    is_ready: bool = False
    used_at: int = 0
    uses: int = 0


class ExpertCache(Generic[T]):
    """At most ``capacity`` bytes of experts, loaded when asked for. Safe to use from threads.

    Parameters
    ----------
    load : called with a name, returns the expert; runs outside the cache's lock, once for threads
        that ask for the same expert at the same time. What it raises is passed on to all of them,
        and the expert is not kept
    sizes : bytes of each expert
    capacity : bytes, > 0. Loading begins when there is room, so that experts loaded, being loaded
        and leaving together never exceed it
    policy : ``lru`` evicts the expert unused for longest; ``lfu`` the least used, counts being
        halved as time goes by, of equals the one unused for longest
    evicted : called with name and expert when one leaves, for loaders that must free memory: its
        bytes are taken until this returns, and nothing else takes them before. Runs outside the
        lock, and may not ask the cache for experts. Without it the cache drops its reference
    """

    def __init__(
        self,
        load: Callable[[str], T],
        sizes: Mapping[str, int],
        capacity: int,
        *,
        policy: str = "lru",
        evicted: Callable[[str, T], None] | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise unknown_name("cache policy", policy, POLICIES)
        check_sizes(sizes, capacity)
        self._load, self._evicted = load, evicted
        self._sizes, self.capacity, self.policy = dict(sizes), capacity, policy
        self._entries: dict[str, _Entry[T]] = {}  # their sizes never exceed the capacity
        self._leaving: dict[str, _Entry[T]] = {}  # removed, but still in memory
        self._pins: Counter[str] = Counter()
        self._changed = threading.Condition()  # its lock guards everything
        self._clock = 0
        self._counts: Counter[str] = Counter()

    def get(self, name: str) -> T:
        """Return an expert, loading it if needed.

        Raises UsageError for an unknown name, ExpertTooLargeError where it cannot fit.
        """
        return self._fetch(name, is_request=True)

    def prefetch(self, names: Iterable[str]) -> None:
        """Load experts that will be needed soon; raises as ``get``. Not counted as requests."""
        for name in names:
            self._fetch(name, is_request=False)

    def pin(self, name: str) -> None:
        """Load an expert and keep it until as many ``unpin`` as ``pin``; raises as ``get``."""
        with self._changed:
            self._pins[name] += 1
        try:
            self._fetch(name, is_request=False)
        except BaseException:
            self.unpin(name)
            raise

    def unpin(self, name: str) -> None:
        """Undo one ``pin``; nothing happens to an expert that is not pinned."""
        with self._changed:
            self._pins[name] = max(self._pins[name] - 1, 0)
            self._changed.notify_all()

    @contextmanager
    def using(self, name: str) -> Iterator[T]:
        """Hold an expert that is not evicted meanwhile; counts as a request, raises as ``get``."""
        with self._changed:
            self._pins[name] += 1
        try:
            yield self.get(name)
        finally:
            self.unpin(name)

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of the experts that are loaded or arriving, in order of arrival."""
        with self._changed:
            return tuple(self._entries)

    @property
    def used(self) -> int:
        """Bytes taken by experts loaded, being loaded, or leaving; never above the capacity."""
        with self._changed:
            return self._used()

    @property
    def counts(self) -> CacheCounts:
        """What was done so far."""
        with self._changed:
            return CacheCounts(**self._counts)

    def _fetch(self, name: str, *, is_request: bool) -> T:
        size = checked_size(name, self._sizes, self.capacity)
        with self._changed:
            leaving = self._make_room(name, size)
            entry = self._entries.get(name)  # another thread may have come first
            is_new = entry is None
            if entry is None:
                entry = self._entries[name] = _Entry(size=size)
                self._counts["misses" if is_request else "prefetches"] += 1
                self._counts["bytes_moved"] += size
            else:
                self._counts["hits"] += is_request
            self._counts["requests"] += is_request
            self._touch(entry)
        return self._loaded(name, entry, leaving) if is_new else self._awaited(entry)

    def _loaded(self, name: str, entry: _Entry[T], leaving: list[str]) -> T:
        """See the leaving experts off, then load; whatever fails, nobody is left waiting."""
        try:
            with ExitStack() as departures:  # each one happens, even if one before it fails
                for gone in reversed(leaving):
                    departures.callback(self._depart, gone)
            with self._changed:
                self._changed.wait_for(lambda: self._fits_now(name, entry.size))
                entry.is_held = True
            entry.expert = self._load(name)
        except BaseException as error:
            entry.error = error
            with self._changed:
                del self._entries[name]
            raise
        finally:
            with self._changed:
                entry.is_ready = True
                self._changed.notify_all()
        return entry.expert

    def _depart(self, name: str) -> None:
        """Free a leaving expert. No variable may hold it, or it would outlive its bytes."""
        try:
            if self._evicted is not None:
                self._evicted(name, cast(T, self._leaving[name].expert))
        finally:
            with self._changed:
                del self._leaving[name]
                self._changed.notify_all()

    def _fits_now(self, name: str, size: int) -> bool:
        """Whether loading may begin. True for every entry once nothing is leaving."""
        return name not in self._leaving and self._used() + size <= self.capacity

    def _awaited(self, entry: _Entry[T]) -> T:
        with self._changed:
            self._changed.wait_for(lambda: entry.is_ready)
        if entry.error is not None:
            raise entry.error
        return cast(T, entry.expert)

    def _make_room(self, name: str, size: int) -> list[str]:
        """Make the experts leave that must for ``size`` bytes; wait for arriving ones to be ready.

        Nobody goes where the expert is here, or another thread brings it, or where there is room.
        """
        while name not in self._entries:
            reserved = sum(entry.size for entry in self._entries.values())
            excess = reserved + size - self.capacity
            if excess <= 0:
                return []
            loose = [(n, e) for n, e in self._entries.items() if not self._pins[n]]
            if sum(e.size for _, e in loose) < excess:
                raise ExpertTooLargeError(
                    f"expert {name!r} takes {size:,} bytes, but pinned experts leave "
                    f"{self.capacity - reserved + sum(e.size for _, e in loose):,} of "
                    f"{self.capacity:,}; unpin one or raise the capacity"
                )
            ready = [(self._rank(e), n) for n, e in loose if e.is_ready]
            if sum(self._entries[n].size for _, n in ready) >= excess:
                return self._remove([n for _, n in sorted(ready)], excess)
            self._changed.wait()
        return []

    def _remove(self, ready: list[str], excess: int) -> list[str]:
        """Make the first experts leave that make up ``excess`` bytes."""
        leaving = []
        for name in ready:
            if excess <= 0:
                break
            self._leaving[name] = self._entries.pop(name)
            leaving.append(name)
            excess -= self._leaving[name].size
        self._counts["evictions"] += len(leaving)
        return leaving

    def _rank(self, entry: _Entry[T]) -> tuple[int, int]:
        return (entry.uses if self.policy == "lfu" else 0, entry.used_at)

    def _touch(self, entry: _Entry[T]) -> None:
        self._clock += 1
        entry.used_at = self._clock
        entry.uses += 1
        if sum(e.uses for e in self._entries.values()) > _AGEING * len(self._entries):
            for other in self._entries.values():
                other.uses //= 2

    def _used(self) -> int:
        held = [entry.size for entry in self._entries.values() if entry.is_held]
        return sum(held) + sum(entry.size for entry in self._leaving.values())


def check_sizes(sizes: Mapping[str, int], capacity: int) -> None:
    """Raise UsageError for a capacity, InputError for an expert of no bytes."""
    if capacity <= 0:
        raise UsageError(f"expert cache: expected a capacity above 0 bytes, got {capacity!r}")
    for name, size in sizes.items():
        if size <= 0:
            raise InputError(f"expert cache: expected {name!r} above 0 bytes, got {size!r}")


def checked_size(name: str, sizes: Mapping[str, int], capacity: int) -> int:
    """Return an expert's bytes. Raises UsageError where unknown, ExpertTooLargeError."""
    if name not in sizes:
        raise unknown_name("expert", name, sizes)
    if sizes[name] > capacity:
        raise ExpertTooLargeError(
            f"expert {name!r} takes {sizes[name]:,} bytes, the cache holds {capacity:,}; "
            "raise the capacity or leave the expert out"
        )
    return sizes[name]
