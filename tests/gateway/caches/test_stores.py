from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.caches.stores import MemoryStore

OVERHEAD = 300


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def get(store: MemoryStore, key: bytes) -> bytes | None:
    return asyncio.run(store.get(key))


def test_an_entry_lives_for_its_time_and_no_longer() -> None:
    clock = Clock()
    store = MemoryStore(max_bytes=10_000, ttl=10, clock=clock)
    store.put(b"a", b"1")
    clock.now += 9.9
    assert get(store, b"a") == b"1"
    clock.now += 0.2
    assert get(store, b"a") is None
    assert store.health()["entries"] == 0
    assert store.health()["bytes"] == 0


def test_the_least_recently_used_goes_first() -> None:
    store = MemoryStore(max_bytes=3 * (OVERHEAD + 10), ttl=10)
    for key in (b"a", b"b", b"c"):
        store.put(key, b"0123456789")
    get(store, b"a")
    store.put(b"d", b"0123456789")
    assert [get(store, key) is not None for key in (b"a", b"b", b"c", b"d")] == [
        True,
        False,
        True,
        True,
    ]
    assert store.health()["evicted"] == 1


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.binary(max_size=400))),
    st.integers(400, 2000),
)
def test_bytes_are_what_the_entries_hold_and_never_above_the_bound(
    puts: list[tuple[bytes, bytes]], bound: int
) -> None:
    store = MemoryStore(max_bytes=bound, ttl=10)
    for key, value in puts:
        store.put(key, value)
        health = store.health()
        assert health["bytes"] <= bound
    held = [value for key in (b"a", b"b", b"c", b"d") if (value := get(store, key)) is not None]
    assert store.health()["bytes"] == sum(len(value) + OVERHEAD for value in held)


def test_a_new_value_replaces_the_old() -> None:
    store = MemoryStore(max_bytes=10_000, ttl=10)
    store.put(b"a", b"1")
    store.put(b"a", b"22")
    assert get(store, b"a") == b"22"
    assert store.health()["entries"] == 1
