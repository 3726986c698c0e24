"""Hedged requests: the first to produce wins, the loser is cancelled, extra calls are bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from crossroads.gateway.call import Body, Event
from crossroads.gateway.contracts import CANCELLED, Choice, Order, Tally, Usage
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.gateway.engine.hedge import HedgeBudget
from crossroads.gateway.engine.settings import HedgeSettings
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.scripted import (
    TEXT,
    Scripted,
    Step,
    a_call,
    failing,
    gathered,
    text_of,
)

AFTER = 0.01
CHOICE = Choice(model="a", fallbacks=("b", "c"), hedge_after=AFTER)
SLOW = Step(first_s=30.0)


def run(*upstreams: Scripted, is_stream: bool, choice: Choice = CHOICE, **hedge: Any) -> Tally:
    settings = EngineSettings(retries=0, hedge=HedgeSettings(**hedge))
    engine = Engine({upstream.name: upstream for upstream in upstreams}, settings)
    tally = Tally()
    call = a_call(is_stream=is_stream)
    if is_stream:
        events = asyncio.run(gathered(engine, call, choice, tally))
        assert text_of(events) == TEXT
    else:
        asyncio.run(engine.complete(call, choice, tally))
    assert tally.is_complete
    assert tally.text == TEXT
    assert all(health["in_flight"] == 0 for health in engine.health().values())
    return tally


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_next_model_is_asked_when_the_first_is_slow_and_the_loser_is_cancelled(
    is_stream: bool,
) -> None:
    slow = Scripted("a", SLOW)
    tally = run(slow, Scripted("b"), is_stream=is_stream)
    assert tally.model == "b"
    assert [(attempt.model, attempt.status) for attempt in tally.attempts] == [("a", 0), ("b", 200)]
    assert slow.num_running == 0
    assert tally.attempts[0].usage == Usage(21, 0, True)
    assert tally.usage == Usage(7, 5)


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_first_model_still_wins_when_it_is_sooner(is_stream: bool) -> None:
    second = Scripted("b", SLOW)
    tally = run(Scripted("a", Step(first_s=4 * AFTER)), second, is_stream=is_stream)
    assert tally.model == "a"
    assert second.num_running == 0
    assert len(second.orders) == 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_fast_model_is_not_hedged(is_stream: bool) -> None:
    second = Scripted("b")
    choice = Choice(model="a", fallbacks=("b",), hedge_after=10.0)
    tally = run(Scripted("a"), second, is_stream=is_stream, choice=choice)
    assert tally.model == "a"
    assert second.orders == []


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_model_that_fails_leaves_the_race_to_the_other(is_stream: bool) -> None:
    failed = Step(first_s=3 * AFTER, error=ExpertError("no", status=500), events=[])
    tally = run(Scripted("a", failed), Scripted("b", Step(first_s=6 * AFTER)), is_stream=is_stream)
    assert [(attempt.model, attempt.status) for attempt in tally.attempts] == [
        ("a", 500),
        ("b", 200),
    ]


@pytest.mark.parametrize("is_stream", [False, True])
def test_when_both_fail_the_chain_goes_on_after_them(is_stream: bool) -> None:
    failed = Step(first_s=3 * AFTER, error=ExpertError("no", status=500), events=[])
    tally = run(
        Scripted("a", failed), Scripted("b", failing(503)), Scripted("c"), is_stream=is_stream
    )
    assert [(attempt.model, attempt.status) for attempt in tally.attempts] == [
        ("a", 500),
        ("b", 503),
        ("c", 200),
    ]


def test_a_failure_before_the_hedge_is_due_falls_back_as_ever() -> None:
    tally = run(Scripted("a", failing(500)), Scripted("b"), is_stream=False)
    assert [attempt.model for attempt in tally.attempts] == ["a", "b"]


def test_both_are_cancelled_when_the_client_leaves() -> None:
    async def main() -> None:
        first, second = Scripted("a", SLOW), Scripted("b", SLOW)
        engine = Engine({"a": first, "b": second})
        tally = Tally()
        task = asyncio.create_task(engine.complete(a_call(), CHOICE, tally))
        async with asyncio.timeout(5.0):
            while not second.num_running:
                await asyncio.sleep(AFTER)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert first.num_running == second.num_running == 0
        assert [attempt.code for attempt in tally.attempts] == ["cancelled", "cancelled"]

    asyncio.run(main())


class Gated(Scripted):
    """Answers when the gate opens, in the same moment as all others behind it."""

    gate: asyncio.Event

    async def stream(self, order: Order) -> AsyncGenerator[list[Event], None]:
        await self.gate.wait()
        async with aclosing(super().stream(order)) as batches:
            async for batch in batches:
                yield batch


def test_a_loser_that_was_as_fast_is_closed_and_not_counted() -> None:
    async def main() -> None:
        first, second = Gated("a"), Gated("b")
        first.gate = second.gate = asyncio.Event()
        engine = Engine({"a": first, "b": second})
        tally = Tally()
        task = asyncio.create_task(gathered(engine, a_call(is_stream=True), CHOICE, tally))
        async with asyncio.timeout(5.0):
            while len(tally.attempts) < 2:
                await asyncio.sleep(AFTER)
        first.gate.set()
        assert text_of(await task) == TEXT
        assert tally.model == "a"
        assert second.num_running == 0
        assert [attempt.status for attempt in tally.attempts] == [200, 0]
        assert tally.attempts[1].usage == Usage(21, 0, True)  # its opening had no text yet
        assert tally.num_fallbacks == 0
        assert all(health["in_flight"] == 0 for health in engine.health().values())

    asyncio.run(main())


def test_a_whole_answer_that_was_as_fast_is_billed_and_marked_as_not_needed() -> None:
    class Together(Gated):
        async def complete(self, order: Order) -> Body:
            await self.gate.wait()
            return await super().complete(order)

    async def main() -> None:
        first, second = Together("a"), Together("b")
        first.gate = second.gate = asyncio.Event()
        tally = Tally()
        engine = Engine({"a": first, "b": second})
        task = asyncio.create_task(engine.complete(a_call(), CHOICE, tally))
        async with asyncio.timeout(5.0):
            while len(tally.attempts) < 2:
                await asyncio.sleep(AFTER)
        first.gate.set()
        await task
        loser = next(attempt for attempt in tally.attempts if attempt.model != tally.model)
        assert (loser.code, tally.num_fallbacks) == ("cancelled", 0)
        assert loser.usage is not None

    asyncio.run(main())


def test_hedges_count_as_attempts() -> None:
    settings = EngineSettings(max_attempts=1)
    engine = Engine({"a": Scripted("a", Step(first_s=3 * AFTER)), "b": Scripted("b")}, settings)
    tally = Tally()
    asyncio.run(engine.complete(a_call(), CHOICE, tally))
    assert [attempt.model for attempt in tally.attempts] == ["a"]


def test_settings_can_hedge_every_policy() -> None:
    choice = Choice(model="a", fallbacks=("b",))
    tally = run(Scripted("a", SLOW), Scripted("b"), is_stream=False, choice=choice, after_s=AFTER)
    assert tally.model == "b"


def test_without_another_model_nothing_is_hedged() -> None:
    upstream = Scripted("a", Step(first_s=3 * AFTER))
    choice = Choice(model="a", hedge_after=AFTER)
    tally = run(upstream, is_stream=False, choice=choice)
    assert len(tally.attempts) == 1


def test_hedges_stay_within_their_share_of_the_calls() -> None:
    budget = HedgeBudget(HedgeSettings(max_share=0.1, burst=3))
    num_hedges = 0
    for _ in range(1_000):
        budget.earn()
        num_hedges += budget.spend()
    assert 95 <= num_hedges <= 101
    for _ in range(1_000):
        budget.earn()
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]


def test_a_share_of_zero_means_none_at_all() -> None:
    budget = HedgeBudget(HedgeSettings(max_share=0.0))
    budget.earn()
    assert not budget.spend()


def test_a_spent_budget_leaves_the_slow_model_to_itself() -> None:
    upstream = Scripted("a", Step(first_s=3 * AFTER))
    second = Scripted("b")
    run(upstream, second, is_stream=False, max_share=0.0)
    assert second.orders == []


class Lingering(Scripted):
    """Takes its time to end when it is cancelled."""

    async def _wait(self, step: Step) -> None:
        try:
            await super()._wait(step)
        except asyncio.CancelledError:
            await asyncio.sleep(10 * AFTER)
            raise


def test_a_winner_is_not_forgotten_when_the_client_leaves_while_the_loser_ends() -> None:
    async def main() -> None:
        slow = Lingering("a", SLOW)
        engine = Engine({"a": slow, "b": Scripted("b")}, EngineSettings())
        tally = Tally()
        task = asyncio.create_task(engine.complete(a_call(), CHOICE, tally))
        async with asyncio.timeout(5.0):
            while not slow.num_cancelled:
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [attempt.code for attempt in tally.attempts] == [CANCELLED, CANCELLED]
        assert all(attempt.usage is not None for attempt in tally.attempts)

    asyncio.run(main())


class LingeringStream(Scripted):
    """Takes its time to end a stream that is cancelled."""

    async def stream(self, order: Order) -> AsyncGenerator[list[Event], None]:
        try:
            async with aclosing(super().stream(order)) as batches:
                async for batch in batches:
                    yield batch
        except asyncio.CancelledError:
            await asyncio.sleep(10 * AFTER)
            raise


def test_a_stream_that_won_is_closed_when_the_client_leaves_while_the_loser_ends() -> None:
    async def main() -> None:
        slow, fast = LingeringStream("a", SLOW), Scripted("b")
        engine = Engine({"a": slow, "b": fast}, EngineSettings())
        task = asyncio.create_task(gathered(engine, a_call(is_stream=True), CHOICE, Tally()))
        async with asyncio.timeout(5.0):
            while not slow.num_cancelled:
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert fast.num_running == 0
        assert all(health["in_flight"] == 0 for health in engine.health().values())

    asyncio.run(main())
