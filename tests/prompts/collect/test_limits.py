from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.collect.limits import MINUTE, Budget, RateLimiter


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def admissions(counts: list[int], **bounds: int) -> list[float]:
    """Return when calls of these token counts are let through."""
    time = Time()

    async def admit_all() -> list[float]:
        limiter = RateLimiter(clock=time.clock, sleep=time.sleep, **bounds)
        return [(await limiter.admit(count)).at for count in counts]

    return asyncio.run(admit_all())


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 5), st.integers(20, 100))
def test_no_minute_holds_more_than_the_bounds(
    tokens: list[int], requests: int, most_tokens: int
) -> None:
    times = admissions(tokens, requests=requests, tokens=most_tokens)
    for n, start in enumerate(times):
        window = [k for k in range(n, len(times)) if times[k] < start + MINUTE]
        assert len(window) <= requests
        alone = len(window) == 1
        assert alone or sum(tokens[k] for k in window) <= most_tokens


def test_calls_wait_for_the_oldest_to_leave_the_window() -> None:
    assert admissions([1] * 5, requests=2) == [0, 0, 60, 60, 120]
    assert admissions([60, 60, 30], tokens=100) == [0, 60, 60]


def test_a_call_above_the_bound_waits_for_an_empty_window() -> None:
    assert admissions([10, 500, 10], tokens=100) == [0, 60, 120]


def test_without_bounds_nothing_waits() -> None:
    assert admissions([10**9] * 3) == [0, 0, 0]


def test_a_pause_holds_every_call() -> None:
    time = Time()

    async def admit() -> float:
        limiter = RateLimiter(clock=time.clock, sleep=time.sleep)
        limiter.pause(7.0)
        limiter.pause(3.0)
        return (await limiter.admit(1)).at

    assert asyncio.run(admit()) == 7.0


def test_tokens_count_as_they_turned_out() -> None:
    time = Time()

    async def admit() -> list[float]:
        limiter = RateLimiter(tokens=100, clock=time.clock, sleep=time.sleep)
        first = await limiter.admit(90)
        first.tokens = 10
        return [first.at, (await limiter.admit(90)).at]

    assert asyncio.run(admit()) == [0, 0]


@given(st.lists(st.floats(0.01, 1.0), max_size=30), st.floats(0.5, 3.0))
def test_a_budget_is_never_exceeded(costs: list[float], limit: float) -> None:
    async def spend() -> tuple[float, list[bool]]:
        budget = Budget(limit)

        async def call(cost: float) -> bool:
            if not await budget.reserve(cost):
                return False
            await asyncio.sleep(0)
            await budget.settle(cost, cost / 2)
            return True

        made = await asyncio.gather(*map(call, costs))
        return budget.spent, made

    spent, made = asyncio.run(spend())
    assert spent <= limit * (1 + 1e-8)
    assert spent == pytest.approx(sum(c / 2 for c, m in zip(costs, made, strict=True) if m))


def test_a_reservation_waits_for_calls_that_may_turn_out_cheaper() -> None:
    async def spend() -> list[bool]:
        budget = Budget(1.0, spent=0.2)
        assert await budget.reserve(0.7)
        waiting = asyncio.create_task(budget.reserve(0.7))
        await asyncio.sleep(0)
        assert not waiting.done()
        await budget.settle(0.7, 0.1)
        return [await waiting, budget.limit == 1.0]

    assert asyncio.run(spend()) == [True, True]


def test_calls_that_add_up_to_the_limit_all_fit() -> None:
    async def spend() -> int:
        budget, made = Budget(0.2), 0
        while await budget.reserve(0.01):
            await budget.settle(0.01, 0.01)
            made += 1
        return made

    assert asyncio.run(spend()) == 20


def test_money_that_is_spent_is_told_at_once() -> None:
    assert asyncio.run(Budget(1.0, spent=0.9).reserve(0.2)) is False
    assert asyncio.run(Budget(None).reserve(1e9)) is True
