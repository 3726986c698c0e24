from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.dialects import MemoryStore, Stored


def stored(id: str, text: str = "x") -> Stored:
    return Stored({"id": id, "output": [text]}, [{"role": "user", "content": "Hi"}])


def get(store: MemoryStore, owner: str, id: str) -> Stored | None:
    return asyncio.run(store.get(owner, id))


def test_what_is_put_comes_back_to_its_owner_only() -> None:
    store = MemoryStore(max_bytes=10_000, ttl_s=60)
    store.put("me", stored("a"))
    assert get(store, "me", "a") == stored("a")
    assert get(store, "other", "a") is None and get(store, "me", "b") is None
    assert not asyncio.run(store.delete("other", "a"))
    assert asyncio.run(store.delete("me", "a")) and get(store, "me", "a") is None
    assert (len(store), store.num_bytes) == (0, 0)


def test_nothing_outlives_its_time() -> None:
    now = [0.0]
    store = MemoryStore(max_bytes=10_000, ttl_s=60, clock=lambda: now[0])
    store.put("me", stored("a"))
    now[0] = 59.9
    assert get(store, "me", "a") is not None
    now[0] = 60.0
    assert get(store, "me", "a") is None and store.num_bytes == 0


def test_the_least_recently_used_goes_first() -> None:
    size = len(stored("a").to_bytes())
    store = MemoryStore(max_bytes=2 * size, ttl_s=60)
    store.put("me", stored("a"))
    store.put("me", stored("b"))
    assert get(store, "me", "a") is not None
    store.put("me", stored("c"))
    assert [get(store, "me", id) is not None for id in "abc"] == [True, False, True]


def test_one_that_is_too_large_is_not_kept_and_drives_nothing_out() -> None:
    store = MemoryStore(max_bytes=200, ttl_s=60)
    store.put("me", stored("a"))
    store.put("me", stored("b", "x" * 200))
    assert get(store, "me", "a") is not None and get(store, "me", "b") is None


actions = st.tuples(
    st.sampled_from(["put", "get", "delete", "wait"]),
    st.sampled_from(["me", "you"]),
    st.sampled_from("abc"),
    st.integers(0, 60),
)


@given(st.lists(actions, max_size=30))
def test_the_store_keeps_within_its_bounds_and_never_mixes_owners(given_actions: Any) -> None:
    now = [0.0]
    store = MemoryStore(max_bytes=400, ttl_s=50, clock=lambda: now[0])
    for action, owner, id, number in given_actions:
        if action == "put":
            store.put(owner, Stored({"id": id, "owner": owner, "x": "y" * number}, []))
        elif action == "get":
            found = get(store, owner, id)
            assert found is None or found.response["owner"] == owner
        elif action == "delete":
            asyncio.run(store.delete(owner, id))
        else:
            now[0] += number
        assert store.num_bytes <= 400
        assert store.num_bytes == sum(len(raw) for _, raw in store._entries.values())


def test_what_is_kept_takes_little_more_memory_than_is_counted() -> None:
    store = MemoryStore(max_bytes=1 << 24, ttl_s=60)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(500):
            store.put("a", Stored({"id": f"resp_{number}", "text": "x" * 800}, []))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < 2 * store.num_bytes
