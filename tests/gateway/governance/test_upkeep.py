from __future__ import annotations

import asyncio
import logging

import pytest

from crossroads.gateway.governance.accounts import NANO_USD
from crossroads.gateway.governance.clerk import Clerk
from crossroads.gateway.governance.meters import LocalMeters
from crossroads.gateway.governance.plans import Budget, Holders
from crossroads.gateway.governance.upkeep import Upkeep, pace
from tests.gateway.governance.asking import FakeStore, FakeTime, settings


def budget_of(time: FakeTime, **fields: object) -> Budget:
    given = settings(budgets=[{"usd": 10.0, "per": "hour", **fields}])
    holders = Holders(LocalMeters(time.clock()))
    holders.build(given.keys, given.teams)
    return holders.budgets[0]


def spend(budget: Budget, usd: float, calls: int = 1) -> None:
    for _ in range(calls):
        budget.meter.settle(0, round(usd / calls * NANO_USD), 0)


async def nothing() -> None:
    pass


def test_a_share_of_a_budget_is_said_once_and_again_in_the_next_period(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time = FakeTime()
    budget = budget_of(time, alert_at=[0.5, 0.8])
    clock = time.clock()
    upkeep = Upkeep(clock, lambda: [budget], nothing)

    def said() -> int:
        caplog.clear()
        asyncio.run(upkeep.once(None))
        return len(caplog.records)

    with caplog.at_level(logging.WARNING):
        assert said() == 0
        spend(budget, 6.0)
        assert (said(), said()) == (1, 0)
        spend(budget, 3.0)
        assert (said(), said()) == (1, 0)
        time.pass_(3_600)
        assert said() == 0
        spend(budget, 9.0)
        assert said() == 1
        assert "90 % of 10 USD per hour is spent" in caplog.text


def test_one_step_a_time_is_made_by_whoever_comes_first_and_adopted_by_the_others() -> None:
    async def run() -> None:
        time, store = FakeTime(), FakeStore()
        one, other = budget_of(time, pace=True), budget_of(time, pace=True)
        assert one.pacer is not None
        assert other.pacer is not None
        for budget in (one, other):
            spend(budget, 5.0, calls=100)
        await pace(one, store, time.wall + 60)
        assert one.pacer.price > 0
        before = dict(store.documents)
        await pace(other, store, time.wall + 61)
        assert store.documents == before
        assert other.pacer.state == one.pacer.state

    asyncio.run(run())


def test_a_step_that_is_put_off_writes_nothing() -> None:
    async def run() -> None:
        time, store = FakeTime(), FakeStore()
        budget = budget_of(time, pace=True)
        await pace(budget, store, time.wall)
        time.pass_(60)
        spend(budget, 1.0)
        await pace(budget, store, time.wall)
        (name,) = store.documents
        before = store.documents[name]
        time.pass_(10)
        assert budget.pacer is not None
        budget.pacer.num_free = 5
        await pace(budget, store, time.wall)
        assert store.documents[name] is before
        assert budget.pacer.num_free == 5

    asyncio.run(run())


def test_without_the_store_the_price_stays() -> None:
    async def run() -> None:
        time, store = FakeTime(), FakeStore()
        budget = budget_of(time, pace=True)
        assert budget.pacer is not None
        spend(budget, 5.0, calls=100)
        await pace(budget, store, time.wall + 60)
        price = budget.pacer.price
        store.is_gone = True
        spend(budget, 5.0, calls=100)
        await pace(budget, store, time.wall + 600)
        assert budget.pacer.price == price > 0

    asyncio.run(run())


def test_a_store_that_is_back_is_news_and_one_that_was_never_gone_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = Clerk(store, ttl_s=60.0, block_share=0.25, is_open=True)
        for is_gone in (False, True, False, False):
            store.is_gone = is_gone
            await clerk.exchange(is_tick=True)

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == [
        "the store of limits is gone (gone); serving on with what was left",
        "the store of limits is there again",
    ]


def test_a_document_that_is_no_state_is_replaced() -> None:
    async def run() -> None:
        time, store = FakeTime(), FakeStore()
        budget = budget_of(time, pace=True)
        store.documents[f"pace:{budget.name}"] = b"rubbish"
        await pace(budget, store, time.wall + 60)
        assert store.documents[f"pace:{budget.name}"].startswith(b"{")

    asyncio.run(run())


def test_a_step_of_the_clock_that_lasts_begins_the_period_it_is() -> None:
    time = FakeTime()
    budget = budget_of(time)
    spend(budget, 5.0)
    start = budget.meter.start
    clock = budget.meter._clock  # type: ignore[attr-defined]
    upkeep = Upkeep(clock, lambda: [budget], nothing)
    time.wall += 7_200
    asyncio.run(upkeep.once(None))
    assert (budget.meter.start, budget.meter.spent) == (start, 5 * NANO_USD)
    time.pass_(61)
    asyncio.run(upkeep.once(None))
    assert budget.meter.start == start + 7_200
    assert budget.meter.spent == 0
