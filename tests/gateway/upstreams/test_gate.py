"""So many at a time, the others in order, and no more than fit the queue."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.call import Phases
from crossroads.gateway.upstreams.failures import Failures
from crossroads.gateway.upstreams.gate import Gate
from crossroads.prompts.experts.base import ExpertError


def gate(limit: int, max_waiting: int) -> Gate:
    return Gate(limit, max_waiting=max_waiting, failures=Failures("model 'm'"))


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30))
def test_never_more_than_the_limit_are_inside_and_none_is_lost(
    limit: int, calls: list[tuple[int, bool]]
) -> None:
    """Each call stays for some turns of the loop; some are cancelled at some point."""
    bounded = gate(limit, 100)
    inside = most = 0

    async def call(turns: int) -> None:
        nonlocal inside, most
        await bounded.enter(Phases(), soon())
        inside += 1
        most = max(most, inside)
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            inside -= 1
            bounded.leave(0.001)

    async def run_all() -> None:
        tasks = []
        for turns, is_cancelled in calls:
            tasks.append(asyncio.ensure_future(call(turns)))
            if is_cancelled:
                await asyncio.sleep(0)
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run_all())
    assert most <= limit
    assert (bounded.num_inside, bounded.num_waiting) == (0, 0)


def test_who_waits_longest_is_next() -> None:
    order: list[int] = []

    async def call(bounded: Gate, number: int) -> None:
        await bounded.enter(Phases(), soon())
        order.append(number)
        await asyncio.sleep(0)
        bounded.leave(0.001)

    async def run_all() -> None:
        bounded = gate(2, 100)
        await asyncio.gather(*(call(bounded, number) for number in range(20)))

    asyncio.run(run_all())
    assert order == list(range(20))


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def fill() -> ExpertError:
        bounded = gate(1, 2)
        await bounded.enter(Phases(), soon())
        waiting = [asyncio.ensure_future(bounded.enter(Phases(), soon())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ExpertError) as refused:
            await bounded.enter(Phases(), soon())
        for _ in range(3):
            bounded.leave(0.001)
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert bounded.num_inside == 0
        return refused.value

    error = asyncio.run(fill())
    assert (error.status, error.code) == (503, "upstream_queue_full")
    assert error.retry_after is not None
    assert error.retry_after >= 1
    assert "1 calls are running and 2 waiting" in str(error)


def test_waiting_ends_at_the_deadline_and_counts_as_queue() -> None:
    async def wait() -> None:
        bounded, phases = gate(1, 2), Phases()
        await bounded.enter(Phases(), soon())
        with pytest.raises(ExpertError) as late:
            await bounded.enter(phases, soon(0.05))
        assert (late.value.status, late.value.code) == (504, "upstream_timeout")
        assert phases.queue >= 0.04
        assert bounded.num_waiting == 0
        bounded.leave(0.1)
        await bounded.enter(Phases(), soon())
        assert bounded.num_inside == 1

    asyncio.run(wait())
