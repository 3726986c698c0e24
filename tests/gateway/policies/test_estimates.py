from __future__ import annotations

import asyncio
import itertools
import math
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.policies.estimates import Estimate, Estimates, RouterFailedError, within
from crossroads.prompts.fitted import FittedRouter
from crossroads.prompts.router import Queries
from tests.gateway.policies.conftest import MODELS, Stub, run, stub


def made(**settings: int) -> tuple[Estimates, Stub]:
    fitted = stub()
    estimates = Estimates(fitted, **settings)
    router = fitted.router
    assert isinstance(router, Stub)
    router.batches.clear()
    router.threads.clear()
    return estimates, router


async def get(estimates: Estimates, text: str, budget_s: float | None = None) -> Estimate | None:
    found = estimates.ask(text)
    return found if isinstance(found, Estimate) else await within(found, budget_s)


async def ask(estimates: Estimates, *texts: str) -> list[list[float] | None]:
    found = await asyncio.gather(*(get(estimates, text) for text in texts))
    return [None if one is None else list(one.quality) for one in found]


def test_what_waits_is_estimated_together_and_what_is_known_not_again() -> None:
    estimates, router = made()

    async def work() -> None:
        await ask(estimates, "a", "b", "a", "c")
        await ask(estimates, "b", "c")

    run(work)
    assert router.batches == [["a", "b", "c"]]
    assert (estimates.num_hits, estimates.num_misses, estimates.num_batches) == (2, 4, 1)


@pytest.mark.parametrize(("max_batch", "inline_chars"), [(4, 1000), (16, 43)])
def test_one_turn_of_the_loop_never_works_on_more_than_it_may(
    max_batch: int, inline_chars: int
) -> None:
    """The bound on the event loop's lag: between two batches other work gets its turn."""
    estimates, router = made(max_batch=max_batch, inline_chars=inline_chars)
    seen: list[int] = []

    async def work() -> None:
        done = False

        async def tick() -> None:
            while not done:
                seen.append(len(router.batches))
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        await ask(estimates, *(f"{n:02d} {'x' * 40}" for n in range(20)))
        done = True
        await ticker

    run(work)
    assert max(len(batch) for batch in router.batches) == 4  # of 43 characters each
    assert max(after - before for before, after in itertools.pairwise(seen)) == 1
    assert set(router.threads) == {"MainThread"}


def test_a_batch_grows_while_every_turn_of_the_loop_brings_more() -> None:
    estimates, router = made(max_batch=16)

    async def late(turns: int, *texts: str) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await ask(estimates, *texts)

    async def work() -> None:
        await asyncio.gather(late(0, "a", "b"), late(1, "c"), late(2, "d"), late(6, "e"))

    run(work)
    assert router.batches[0] == ["a", "b", "c", "d"]
    assert sorted(itertools.chain(*router.batches)) == ["a", "b", "c", "d", "e"]


def test_a_batch_does_not_grow_for_ever() -> None:
    estimates, router = made(max_batch=256)

    async def work() -> None:
        waiting = [asyncio.create_task(ask(estimates, "first", "second"))]
        for n in range(60):
            waiting.append(asyncio.create_task(ask(estimates, f"text {n}")))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)

    run(work)
    assert max(map(len, router.batches)) < 12
    assert sum(map(len, router.batches)) == 62


def test_prompts_that_come_one_by_one_do_not_wait_for_a_turn_of_the_loop() -> None:
    estimates, router = made()

    async def work() -> None:
        for n in range(8):
            assert isinstance(estimates.ask(f"text {n}"), asyncio.Future)
            await asyncio.sleep(0.001)
        alone = estimates.ask("alone")
        assert isinstance(alone, Estimate)
        assert estimates._cache.get("alone") is alone
        # Company in the same turn ends that: who comes now is estimated with whoever comes next.
        assert isinstance(estimates.ask("one"), asyncio.Future)
        assert isinstance(estimates.ask("two"), asyncio.Future)
        await asyncio.sleep(0.001)
        assert await ask(estimates, "easy") == [[0.9, 0.91, 0.92]]

    run(work)
    singles = [[f"text {n}"] for n in range(8)]
    assert router.batches == [*singles, ["alone"], ["one", "two"], ["easy"]]
    assert estimates.num_inline == 12


def test_a_prompt_that_fails_at_once_fails_as_any_other() -> None:
    estimates, _ = made()

    async def work() -> None:
        for n in range(8):
            await get(estimates, f"text {n}")
        with pytest.raises(RouterFailedError, match="a matrix is singular"):
            estimates.ask("broken")
        await asyncio.sleep(0)
        with pytest.raises(RouterFailedError, match="a matrix is singular"):
            await get(estimates, "broken, again")

    run(work)
    assert estimates.num_failures == 2


def test_what_was_under_way_in_a_loop_that_ended_is_forgotten() -> None:
    estimates, router = made()

    async def leave() -> None:
        for n in range(8):
            await get(estimates, f"text {n}")
        assert isinstance(estimates.ask("at once"), Estimate)
        estimates.ask("never waited for")

    async def work() -> None:
        assert await ask(estimates, "easy") == [[0.9, 0.91, 0.92]]

    run(leave)
    run(work)
    assert router.batches[-1] == ["easy"]


def test_long_texts_and_slow_routers_never_block_the_loop() -> None:
    """The router waits for an event that only the event loop can set."""
    for slow in (True, False):
        estimates, router = made(inline_chars=4000 if slow else 10)
        estimates.is_inline = not slow

        async def work(estimates: Estimates = estimates, router: Stub = router) -> None:
            waiting = asyncio.create_task(get(estimates, "wait for it, please"))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            router.gate.set()
            assert await waiting is not None

        run(work)
        assert router.threads == ["router"]
        estimates.close()


def test_a_thread_takes_all_that_waits_at_once() -> None:
    estimates, router = made(inline_chars=0, max_batch=8)

    async def work() -> None:
        first = asyncio.create_task(get(estimates, "wait"))
        await asyncio.sleep(0.02)
        rest = asyncio.gather(*(get(estimates, f"text {n}") for n in range(12)))
        await asyncio.sleep(0)
        router.gate.set()
        await first
        await rest

    run(work)
    assert [len(batch) for batch in router.batches] == [1, 8, 4]
    estimates.close()


def test_over_budget_there_is_no_estimate_but_a_late_one_is_remembered() -> None:
    estimates, router = made(inline_chars=0)

    async def work() -> None:
        assert await get(estimates, "wait", budget_s=0.005) is None
        router.gate.set()
        while estimates._cache.get("wait") is None:
            await asyncio.sleep(0.001)
        assert await get(estimates, "wait", budget_s=0.005) is not None

    run(work)
    assert len(router.batches) == 1
    estimates.close()


def test_one_broken_prompt_fails_alone() -> None:
    estimates, _ = made()

    async def work() -> list[object]:
        texts = ("easy", "broken", "hard")
        return list(
            await asyncio.gather(*(get(estimates, t) for t in texts), return_exceptions=True)
        )

    easy, broken, hard = run(work)
    assert isinstance(broken, RouterFailedError)
    assert "RuntimeError: a matrix is singular" in str(broken)
    assert not isinstance(easy, BaseException)
    assert not isinstance(hard, BaseException)
    assert estimates.num_failures == 1


def test_a_client_that_goes_takes_nothing_from_the_others() -> None:
    estimates, router = made(inline_chars=0)

    async def work() -> None:
        one, other = (asyncio.create_task(get(estimates, "wait")) for _ in range(2))
        await asyncio.sleep(0.01)
        one.cancel()
        router.gate.set()
        assert await other is not None
        with pytest.raises(asyncio.CancelledError):
            await one

    run(work)
    estimates.close()


def test_the_least_recently_used_prompt_is_forgotten_first() -> None:
    estimates, _ = made(cache=2)

    async def work() -> None:
        for text in ("a", "b", "a", "c"):
            await get(estimates, text)

    run(work)
    assert estimates._cache.get("a") is not None
    assert estimates._cache.get("b") is None
    assert estimates._cache.get("c") is not None


@pytest.mark.parametrize("length", [10, 1024, 1025, 5000])
def test_texts_of_any_length_are_told_apart_by_their_last_character(length: int) -> None:
    estimates, router = made()

    async def work() -> None:
        await ask(estimates, "x" * length + "a", "x" * length + "b", "x" * length + "a")

    run(work)
    asked = [text for batch in router.batches for text in batch]
    assert sorted(asked) == ["x" * length + "a", "x" * length + "b"]  # in one batch or in two


def test_without_a_cache_nothing_is_remembered() -> None:
    estimates, router = made(cache=0)

    async def work() -> None:
        await get(estimates, "a")
        await get(estimates, "a")

    run(work)
    assert router.batches == [["a"], ["a"]]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=20))
def test_estimates_do_not_depend_on_the_batch(texts: list[str]) -> None:
    estimates, _ = made()
    texts = [text for text in texts if "wait" not in text and "broken" not in text]
    if texts:
        together = estimates.estimate(texts)
        alone = [estimates.estimate([text])[0] for text in texts]
        assert all(a.quality == b.quality for a, b in zip(together, alone, strict=True))


def test_a_fitted_router_estimates_alike_in_every_batch(knn: FittedRouter) -> None:
    estimates = Estimates(knn)
    texts = [f"What is {n} times {n + 3}, and how many inches are {n} metres?" for n in range(40)]
    together = estimates.estimate(texts)
    for size in (1, 7, 16):
        parts = [estimates.estimate(texts[i : i + size]) for i in range(0, 40, size)]
        found = [one for part in parts for one in part]
        for a, b in zip(together, found, strict=True):
            assert a.quality == b.quality
            assert np.array_equal(a.embedding, b.embedding)  # type: ignore[arg-type]


def test_an_estimate_has_every_model_and_no_embedding_is_kept() -> None:
    estimates, _ = made()

    async def work() -> None:
        found = await get(estimates, "easy")
        assert found is not None
        assert found.quality == [0.9, 0.91, 0.92]
        assert len(found.quality) == len(MODELS)
        assert found.embedding is None
        assert found.features is None

    run(work)


def test_features_that_are_asked_for_later_are_found_for_known_prompts_too() -> None:
    estimates, _ = made()

    async def work() -> None:
        await get(estimates, "easy")
        estimates.keep_features = True  # as a reload may
        for _ in range(2):
            found = await get(estimates, "easy")
            assert found is not None
            assert found.features is not None
        assert (estimates.num_misses, estimates.num_hits) == (2, 1)

    run(work)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_estimate(number: float) -> None:
    estimates, router = made()
    whole = router._predict

    def predict(queries: Queries) -> npt.NDArray[np.float64]:
        found = whole(queries)
        found[-1, -1] = number
        return found

    router._predict = predict  # type: ignore[method-assign]
    with pytest.raises(RouterFailedError, match="estimates no number"):
        estimates.estimate(["easy", "hard"])


def test_what_a_reload_takes_over_is_shared_but_for_the_decisions() -> None:
    (before, _), (after, router), (small, _) = made(), made(), made(cache=2)

    async def work() -> None:
        for text in ("a", "b", "c"):
            await get(before, text)
            old = before.ask(text)
            assert isinstance(old, Estimate)
            assert old.kept == {}
            old.kept["terms"] = "of before"
        after.adopt(before)
        after.adopt(before)
        new = after.ask("a")
        assert isinstance(new, Estimate)
        assert new.kept == {}
        new.kept["terms"] = "of after"
        again = before.ask("a")  # while it serves on
        assert isinstance(again, Estimate)
        assert "of after" not in again.kept.values()
        assert (new.quality, new.kept) == (again.quality, {"terms": "of after"})
        untouched = before.ask("b")
        assert isinstance(untouched, Estimate)
        assert untouched.kept == {"terms": "of before"}
        await get(before, "learnt later")
        assert isinstance(after.ask("learnt later"), Estimate)
        small.adopt(before)
        assert len(small._cache) == 2

    run(work)
    assert router.batches == []


def test_without_a_cache_a_reload_takes_nothing_over() -> None:
    (before, _), (after, router) = made(), made(cache=0)

    async def work() -> None:
        await get(before, "a")
        after.adopt(before)
        await get(after, "a")

    run(work)
    assert router.batches == [["a"]]


def test_a_router_that_becomes_slow_leaves_the_event_loop_and_comes_back_when_it_is_fast() -> None:
    estimates, router = made(cache=0, max_batch=4)
    router_row, slow = router._row, [0.02]

    def late(text: str) -> list[float]:
        time.sleep(slow[0])
        return router_row(text)

    router._row = late  # type: ignore[method-assign]
    estimates.is_inline, estimates._pace = True, 0.0

    async def work() -> None:
        for n in range(4):
            await get(estimates, f"late {n}")
        assert not estimates.is_inline
        await ask(estimates, *(f"together {n}" for n in range(8)))
        slow[0] = 0.0
        until = time.monotonic() + 10
        while not estimates.is_inline and time.monotonic() < until:
            await get(estimates, "fast")
        assert estimates.is_inline

    run(work)
    assert router.threads[:3] == ["MainThread"] * 3
    assert "router" in router.threads[3:5]
    estimates.close()


def test_what_waits_behind_a_slow_batch_goes_to_the_thread() -> None:
    estimates, router = made(cache=0, max_batch=1)
    router_row = router._row

    def late(text: str) -> list[float]:
        time.sleep(0.02)
        return router_row(text)

    router._row = late  # type: ignore[method-assign]
    estimates.is_inline, estimates._pace = True, 0.0
    run(lambda: ask(estimates, *(f"text {n}" for n in range(8))))
    assert router.threads.count("MainThread") == 3
    assert router.threads.count("router") == 5
    estimates.close()


def test_one_late_prompt_and_long_ones_change_nothing() -> None:
    estimates, router = made(inline_chars=20, cache=0)
    router_row = router._row

    def late(text: str) -> list[float]:
        time.sleep(0.02 if "late" in text else 0.0)
        return router_row(text)

    router._row = late  # type: ignore[method-assign]
    estimates.is_inline, estimates._pace = True, 0.0

    async def work() -> None:
        await get(estimates, "late")
        for n in range(5):
            await get(estimates, f"late, and longer than twenty {n}")
        assert estimates.is_inline

    run(work)
    estimates.close()
