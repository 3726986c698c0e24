"""What the clerk reports last, so that no count is lost, and leases that nobody renews."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance.accounts import Account
from crossroads.gateway.governance.clerk import Clerk
from crossroads.gateway.governance.leases import LeasedMeter
from crossroads.gateway.governance.stores import Answer, Ask, StoreError
from tests.gateway.governance.asking import FakeStore

LIMIT = 40


class FailingStore(FakeStore):
    """Fails the next ``num_failures`` exchanges."""

    def __init__(self) -> None:
        super().__init__()
        self.num_failures = 0

    async def exchange(self, worker: str, ttl_ms: int, asks: Sequence[Ask]) -> list[Answer]:
        if self.num_failures > 0:
            self.num_failures -= 1
            raise StoreError("gone")
        return await super().exchange(worker, ttl_ms, asks)


async def used_without_the_store(store: FailingStore) -> Clerk:
    """A clerk who knows of seven used units, two of them since its store is gone."""
    clerk = Clerk(store, ttl_s=60.0, block_share=0.25, is_open=True)
    await clerk.start()
    meter = LeasedMeter(Account("x", "requests", LIMIT), scope="key", period="day", clerk=clerk)
    assert await meter.ask(10)
    meter.settle(5, 5, 0)
    store.num_failures = 1
    await clerk.exchange(is_tick=True)
    assert clerk.is_down
    meter.settle(5, 2, 0)
    return clerk


@pytest.mark.parametrize("num_failures", [0, 1, 2])
def test_a_store_that_is_back_hears_of_all_that_was_used_before_the_end(num_failures: int) -> None:
    async def run() -> None:
        store = FailingStore()
        clerk = await used_without_the_store(store)
        store.num_failures = num_failures
        await clerk.close()
        entry = store.entries["x"]
        assert (LIMIT - entry.state.free(0), entry.leases[clerk.worker].units) == (7, 0)

    asyncio.run(run())


def test_counts_that_never_reach_a_store_are_said(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        store = FailingStore()
        clerk = await used_without_the_store(store)
        store.num_failures = 1_000
        await clerk.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == [
        "what was used last of 1 limits never reached their store"
    ]


def test_a_store_that_is_gone_is_not_waited_for_where_there_is_nothing_to_report() -> None:
    async def run() -> None:
        store = FailingStore()
        clerk = Clerk(store, ttl_s=60.0, block_share=0.25, is_open=True)
        store.num_failures = 2
        await clerk.start()
        await clerk.close()
        assert store.num_failures == 1

    asyncio.run(run())


def test_a_lease_that_lapsed_while_the_store_was_gone_is_not_spent_twice() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = Clerk(store, ttl_s=0.01, block_share=0.5, is_open=False)
        other = Clerk(store, ttl_s=60.0, block_share=0.25, is_open=False)
        account = Account("x", "requests", LIMIT)
        mine, theirs = (
            LeasedMeter(account, scope="key", period="day", clerk=each) for each in (clerk, other)
        )
        await clerk.exchange(is_tick=True)
        waiting = asyncio.create_task(mine.ask(1))
        await asyncio.sleep(0)
        await clerk.exchange(is_tick=False)
        assert await waiting
        assert mine.held > 1
        await asyncio.sleep(0.02)
        store.is_gone = True  # for this worker; the store takes it for dead
        await clerk.exchange(is_tick=True)
        taken = 1
        while mine.take(1, 0):
            taken += 1
        with pytest.raises(ApiError, match="cannot be reached"):
            await mine.ask(1)
        store.is_gone = False
        store.dead.add(clerk.worker)
        await other.exchange(is_tick=True)
        waiting = asyncio.create_task(theirs.ask(LIMIT - 1))
        await asyncio.sleep(0)
        await other.exchange(is_tick=False)
        assert not other.is_down
        taken += (LIMIT - 1) * await waiting
        assert taken == LIMIT

    asyncio.run(run())
