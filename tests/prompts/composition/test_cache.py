from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts.composition import ExpertCache, ExpertTooLargeError

SIZES = {"a": 4, "b": 3, "c": 2, "d": 1}


class Weights:
    """A loader that remembers what it loaded and what was taken away."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.gone: list[str] = []

    def load(self, name: str) -> str:
        self.loaded.append(name)
        return name.upper()

    def evicted(self, name: str, expert: str) -> None:
        assert expert == name.upper()
        self.gone.append(name)


def cache(capacity: int, policy: str = "lru") -> tuple[ExpertCache[str], Weights]:
    weights = Weights()
    made = ExpertCache(weights.load, SIZES, capacity, policy=policy, evicted=weights.evicted)
    return made, weights


def test_an_expert_is_loaded_once_and_then_found() -> None:
    made, weights = cache(10)
    assert [made.get("a"), made.get("a")] == ["A", "A"]
    assert weights.loaded == ["a"]
    counts = made.counts
    assert (counts.requests, counts.hits, counts.misses) == (2, 1, 1)
    assert (counts.bytes_moved, counts.swaps) == (4, 1)
    assert counts.swaps_per_1k == 500.0
    assert counts.bytes_per_1k == 2000.0


def test_a_fresh_cache_has_moved_nothing() -> None:
    assert cache(5)[0].counts.swaps_per_1k == cache(5)[0].counts.bytes_per_1k == 0.0


def test_lru_evicts_the_expert_unused_for_longest_and_only_as_many_as_needed() -> None:
    made, weights = cache(6)
    for name in ("b", "c", "d", "b", "a"):  # b 3 + c 2 + d 1 is full; a needs 4
        made.get(name)
    assert weights.gone == ["c", "d", "b"]
    assert made.resident == ("a",)


def test_lfu_keeps_the_expert_used_most() -> None:
    made, weights = cache(5, "lfu")
    for name in ("b", "b", "c", "d"):  # d needs one byte: the less used c goes, not the older b
        made.get(name)
    assert weights.gone == ["c"]


def test_old_fame_fades() -> None:
    made, weights = cache(5, "lfu")
    for name in ["b"] * 40 + ["c"] * 60 + ["d"]:
        made.get(name)
    assert weights.gone == ["b"]


def test_a_pinned_expert_is_never_evicted_until_it_is_unpinned() -> None:
    made, weights = cache(5)
    made.pin("b")
    for name in ("c", "d", "c", "d"):
        made.get(name)
    assert "b" not in weights.gone
    with pytest.raises(ExpertTooLargeError, match="'a' takes 4 bytes, but pinned experts leave 2"):
        made.get("a")
    made.unpin("b")
    made.get("a")
    assert "b" in weights.gone


def test_pins_add_up() -> None:
    made, _ = cache(5)
    made.pin("b")
    made.pin("b")
    made.unpin("b")
    with pytest.raises(ExpertTooLargeError):
        made.get("a")


def test_an_expert_in_use_stays() -> None:
    made, weights = cache(5)
    with made.using("b") as expert:
        assert expert == "B"
        with pytest.raises(ExpertTooLargeError):
            made.get("a")
    assert made.get("a") == "A"
    assert weights.gone == ["b"]


def test_a_refused_request_is_not_counted_and_pins_nothing() -> None:
    made, _ = cache(3)
    for ask in (made.get, made.pin, lambda name: made.prefetch([name])):
        with pytest.raises(ExpertTooLargeError, match="'a' takes 4 bytes, the cache holds 3"):
            ask("a")
    assert made.counts.requests == 0
    assert made.get("b") == "B"


def test_prefetched_experts_are_hits_and_their_loads_are_swaps() -> None:
    made, _ = cache(10)
    made.prefetch(["a", "b", "a"])
    made.get("a")
    counts = made.counts
    assert (counts.requests, counts.hits, counts.misses, counts.prefetches) == (1, 1, 0, 2)
    assert counts.swaps == 2
    assert counts.bytes_moved == 7


def test_a_loader_that_fails_leaves_nothing_behind() -> None:
    def load(name: str) -> str:
        raise OSError("disk on fire")

    made = ExpertCache(load, SIZES, 10)
    for _ in range(2):
        with pytest.raises(OSError, match="on fire"):
            made.get("a")
    assert made.resident == ()
    assert made.counts.misses == 2


def test_freeing_that_fails_is_reported_and_the_cache_goes_on() -> None:
    def evicted(name: str, expert: str) -> None:
        raise OSError(f"cannot free {name}")

    made = ExpertCache(str, SIZES, 4, evicted=evicted)
    made.get("a")
    with pytest.raises(OSError, match="cannot free a"):
        made.get("b")
    assert made.resident == ()
    assert made.get("b") == "b"


def test_where_freeing_one_fails_the_others_are_freed_all_the_same() -> None:
    seen = []

    def evicted(name: str, expert: str) -> None:
        seen.append(name)
        if name == "c":
            raise OSError("cannot free c")

    made = ExpertCache(str, SIZES, 6, evicted=evicted)
    made.prefetch("cdb")
    with pytest.raises(OSError, match="cannot free c"):
        made.get("a")
    assert seen == ["c", "d", "b"]
    assert made.used == 0


def test_threads_that_ask_together_share_one_load() -> None:
    begun, finish, loads = threading.Event(), threading.Event(), []

    def load(name: str) -> str:
        loads.append(name)
        begun.set()
        finish.wait(5)
        return name.upper()

    made = ExpertCache(load, SIZES, 10)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(made.get, "a") for _ in range(4)]
        begun.wait(5)
        finish.set()
        assert {f.result(5) for f in asked} == {"A"}
    assert loads == ["a"]
    assert made.counts.hits == 3


def test_a_failure_reaches_everybody_who_waits() -> None:
    begun, finish = threading.Event(), threading.Event()

    def load(name: str) -> str:
        begun.set()
        finish.wait(5)
        raise OSError("disk on fire")

    made = ExpertCache(load, SIZES, 10)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(made.get, "a")
        begun.wait(5)
        second = pool.submit(made.get, "a")
        while made.counts.requests < 2:
            pass
        finish.set()
        for asked in (first, second):
            with pytest.raises(OSError, match="on fire"):
                asked.result(5)


def test_a_request_waits_for_arriving_experts_to_make_room() -> None:
    begun, finish = threading.Event(), threading.Event()

    def load(name: str) -> str:
        if name == "a":
            begun.set()
            finish.wait(5)
        return name.upper()

    made = ExpertCache(load, SIZES, 4)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(made.get, "a")
        begun.wait(5)
        second = pool.submit(made.get, "b")
        assert made.used == 4
        finish.set()
        assert (first.result(5), second.result(5)) == ("A", "B")
    assert made.resident == ("b",)


class Memory:
    """Loads and frees, and knows what lies in memory: from the start of a load to a free's end."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.live: list[str] = []
        self.peak = 0

    def load(self, name: str) -> str:
        with self.lock:
            assert name not in self.live
            self.live.append(name)
            self.peak = max(self.peak, sum(SIZES[n] for n in self.live))
        time.sleep(2e-4)
        return name

    def evicted(self, name: str, expert: str) -> None:
        time.sleep(2e-4)
        with self.lock:
            self.live.remove(name)


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_many_threads_never_exceed_the_capacity(policy: str) -> None:
    memory = Memory()
    made = ExpertCache(memory.load, SIZES, 6, policy=policy, evicted=memory.evicted)
    with ThreadPoolExecutor(8) as pool:
        names = [f"{'abcd'[(n * 7 + n // 5) % 4]}" for n in range(400)]
        assert list(pool.map(made.get, names)) == names
    assert memory.peak <= 6
    assert sorted(memory.live) == sorted(made.resident)
    counts = made.counts
    assert counts.hits + counts.misses == counts.requests == 400


def test_an_expert_takes_its_bytes_until_it_is_freed() -> None:
    begun, finish, loaded = threading.Event(), threading.Event(), []

    def evicted(name: str, expert: str) -> None:
        begun.set()
        assert finish.wait(5)

    def load(name: str) -> str:
        loaded.append((name, finish.is_set()))
        return name

    made = ExpertCache(load, SIZES, 6, evicted=evicted)
    made.prefetch(["a", "c"])  # 4 + 2 bytes
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(made.get, "b")]
        assert begun.wait(5)  # a is leaving for b
        asked += [pool.submit(made.get, "d"), pool.submit(made.get, "c")]
        assert asked[2].result(5) == "c"
        while made.counts.requests < 3:
            pass
        assert made.used == 6
        assert set(made.resident) == {"b", "c", "d"}
        finish.set()
        assert [a.result(5) for a in asked] == ["b", "d", "c"]
    assert sorted(loaded) == [("a", False), ("b", True), ("c", False), ("d", True)]
    assert made.used == 6


def test_an_expert_asked_for_while_it_leaves_is_loaded_once_it_is_gone() -> None:
    leaving, both_leave, again = (threading.Event() for _ in range(3))
    finish, loaded = threading.Event(), []

    def evicted(name: str, expert: str) -> None:
        if name == "y":
            both_leave.set()
            return
        leaving.set()
        assert finish.wait(5)

    def load(name: str) -> str:
        if name in loaded:
            again.set()
            assert finish.is_set()
        loaded.append(name)
        return name

    made = ExpertCache(load, {"x": 4, "y": 4, "z": 4}, 8, evicted=evicted)
    made.prefetch("xy")
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(made.get, "z")]
        assert leaving.wait(5)  # x leaves for z, and y for x: there would be room for two of x
        asked.append(pool.submit(made.get, "x"))
        assert both_leave.wait(5)
        again.wait(0.05)
        finish.set()
        assert [a.result(5) for a in asked] == ["z", "x"]


def test_an_expert_that_nobody_frees_is_let_go_before_the_next_one_is_loaded() -> None:
    class Expert:
        pass

    left: list[weakref.ref[Expert]] = []

    def load(name: str) -> Expert:
        assert not any(ref() for ref in left)
        expert = Expert()
        left.append(weakref.ref(expert))
        return expert

    made = ExpertCache(load, SIZES, 4)
    for name in "abab":
        made.get(name)
    assert len(left) == 4


@given(
    st.lists(st.sampled_from("abcd"), max_size=60),
    st.integers(4, 12),
    st.sampled_from(["lru", "lfu"]),
)
def test_the_capacity_holds_and_the_books_balance(
    names: list[str], capacity: int, policy: str
) -> None:
    made, weights = cache(capacity, policy)
    for name in names:
        assert made.get(name) == name.upper()
        assert made.used <= capacity
        assert made.used == sum(SIZES[n] for n in made.resident)
        assert name in made.resident
    counts = made.counts
    assert counts.hits + counts.misses == counts.requests == len(names)
    assert counts.misses == len(weights.loaded)
    assert counts.evictions == len(weights.gone)
    assert counts.bytes_moved == sum(SIZES[n] for n in weights.loaded)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown cache policy 'fifo'"):
        ExpertCache(str, SIZES, 5, policy="fifo")
    with pytest.raises(UsageError, match="capacity above 0 bytes, got 0"):
        ExpertCache(str, SIZES, 0)
    with pytest.raises(InputError, match="'a' above 0 bytes, got 0"):
        ExpertCache(str, {"a": 0}, 5)
    with pytest.raises(UsageError, match="unknown expert 'e'"):
        ExpertCache(str, SIZES, 5).get("e")
