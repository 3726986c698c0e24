from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.caches.ring import Ring

DIM = 8
GROUPS = [b"group-of-one-" * 2, b"other-group--" * 2]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def unit(seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def find(ring: Ring, group: bytes, seed: int) -> tuple[bytes, float] | None:
    near = ring.nearest(ring.rows_of(group), unit(seed))
    value = ring.value(near[0], group) if near else None
    return None if value is None else (value, near[0].similarity)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30)), max_size=40), st.integers(1, 12))
def test_the_nearest_is_what_a_plain_search_of_the_latest_finds(
    added: list[tuple[int, int]], capacity: int
) -> None:
    ring = Ring(DIM, max_entries=capacity, max_bytes=10_000)
    for number, (group, seed) in enumerate(added):
        ring.add(GROUPS[group], unit(seed), b"%d" % number, ttl=10)
    latest = list(enumerate(added))[-capacity:]
    for group in (0, 1):
        similarities = [float(unit(99) @ unit(s)) for _, (g, s) in latest if g == group]
        found = find(ring, GROUPS[group], 99)
        if not similarities:
            assert found is None
        else:
            assert found is not None
            assert np.isclose(found[1], max(similarities), atol=1e-5)
            group_of, seed = added[int(found[0])]
            assert group_of == group
            assert np.isclose(unit(99) @ unit(seed), found[1], atol=1e-5)


@given(st.lists(st.integers(0, 300), max_size=30), st.integers(300, 900))
def test_values_never_hold_more_than_the_bound(sizes: list[int], bound: int) -> None:
    ring = Ring(DIM, max_entries=10, max_bytes=bound)
    for number, size in enumerate(sizes):
        ring.add(GROUPS[0], unit(number), b"x" * size, ttl=10)
        assert ring.size == sum(sizes[number + 1 - len(ring) : number + 1])
        assert ring.size <= bound


def test_an_entry_expires() -> None:
    clock = Clock()
    ring = Ring(DIM, max_entries=4, max_bytes=1000, clock=clock)
    ring.add(GROUPS[0], unit(1), b"one", ttl=5)
    assert find(ring, GROUPS[0], 1) is not None
    clock.now = 5.1
    assert find(ring, GROUPS[0], 1) is None


def test_a_row_overwritten_during_a_search_has_no_value() -> None:
    ring = Ring(DIM, max_entries=1, max_bytes=1000)
    ring.add(GROUPS[0], unit(1), b"one", ttl=5)
    (near,) = ring.nearest(ring.rows_of(GROUPS[0]), unit(1))
    ring.add(GROUPS[0], unit(2), b"two", ttl=5)
    assert ring.value(near, GROUPS[0]) is None


def test_the_nearest_come_in_order_down_to_the_least_similarity() -> None:
    ring = Ring(DIM, max_entries=20, max_bytes=1000)
    for seed in range(12):
        ring.add(GROUPS[0], unit(seed), b"%d" % seed, ttl=5)
    similar = sorted((float(unit(99) @ unit(seed)) for seed in range(12)), reverse=True)
    rows = ring.rows_of(GROUPS[0])
    for least, most in ((-2.0, 4), (similar[5] - 1e-4, 12), (similar[0] + 0.01, 3)):
        found = [near.similarity for near in ring.nearest(rows, unit(99), least=least, most=most)]
        wanted = [value for value in similar if value >= least - 1e-6][:most]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_groups_that_agree_in_their_first_bytes_stay_apart() -> None:
    ring = Ring(DIM, max_entries=4, max_bytes=1000)
    ring.add(b"12345678-a", unit(1), b"one", ttl=5)
    assert find(ring, b"12345678-b", 1) is None


def test_a_value_beyond_the_bound_is_not_kept() -> None:
    ring = Ring(DIM, max_entries=4, max_bytes=10)
    ring.add(GROUPS[0], unit(1), b"x" * 11, ttl=5)
    assert len(ring) == 0
