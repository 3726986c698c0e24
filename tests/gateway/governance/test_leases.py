"""Blocks on lease: what workers hold between them never exceeds a limit, whatever gets lost."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance.accounts import Account
from crossroads.gateway.governance.clerk import Clerk
from crossroads.gateway.governance.leases import LeasedBudget, LeasedMeter
from tests.gateway.governance.asking import FakeStore, FakeTime

LIMIT = 40
ACCOUNT = Account("x", "requests", LIMIT)  # a balance: nothing refills behind the test's back


def clerk_of(store: FakeStore, *, is_open: bool = True, share: float = 0.25) -> Clerk:
    return Clerk(store, ttl_s=60.0, block_share=share, is_open=is_open)


def meter_of(clerk: Clerk, account: Account = ACCOUNT) -> LeasedMeter:
    return LeasedMeter(account, scope="key 'a'", period="day", clerk=clerk)


class Leases(RuleBasedStateMachine):
    """Three workers take, settle and report; answers get lost and workers die."""

    workers = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.store = FakeStore()
        self.used = 0
        self.lost = 0  # used by workers that died before they said so
        self.clerks: list[Clerk] = []
        self.meters: list[LeasedMeter] = []
        self.running: list[list[int]] = []
        for _ in range(3):
            self._hire()

    def _hire(self) -> None:
        clerk = clerk_of(self.store, is_open=False)
        self.clerks.append(clerk)
        self.meters.append(meter_of(clerk))
        self.running.append([])
        asyncio.run(clerk.exchange(is_tick=True))

    @rule(worker=workers, n=st.integers(1, 15))
    def take(self, worker: int, n: int) -> None:
        clerk, meter = self.clerks[worker], self.meters[worker]

        async def ask() -> bool:
            if meter.take(n, time.monotonic_ns()):
                return True
            try:
                waiting = asyncio.create_task(meter.ask(n))
                await asyncio.sleep(0)
                await clerk.exchange(is_tick=False)
                return await waiting
            except ApiError as error:
                assert error.status == 503
                return False

        if asyncio.run(ask()):
            self.running[worker].append(n)

    @precondition(lambda self: any(self.running))
    @rule(worker=workers, share=st.floats(0, 1))
    def settle(self, worker: int, share: float) -> None:
        if self.running[worker]:
            n = self.running[worker].pop()
            used = int(n * share)
            self.meters[worker].settle(n, used, time.monotonic_ns())
            self.used += used

    @rule(worker=workers)
    def tick(self, worker: int) -> None:
        asyncio.run(self.clerks[worker].exchange(is_tick=True))

    @rule(worker=workers, is_gone=st.booleans())
    def lose(self, worker: int, is_gone: bool) -> None:
        self.store.is_gone, self.store.loses_answers = is_gone, not is_gone
        asyncio.run(self.clerks[worker].exchange(is_tick=True))
        self.store.is_gone = self.store.loses_answers = False

    @rule(worker=workers)
    def die(self, worker: int) -> None:
        meter = self.meters[worker]
        self.lost += meter.used
        self.used -= meter.used
        self.store.dead.add(self.clerks[worker].worker)
        self._hire()
        for workers in (self.clerks, self.meters, self.running):
            workers[worker] = workers.pop()  # type: ignore[attr-defined]

    @invariant()
    def nobody_gave_more_than_there_is(self) -> None:
        running = sum(sum(calls) for calls in self.running)
        assert self.used + running <= LIMIT

    def teardown(self) -> None:
        """In the end nothing is on lease, and the store knows of all that was used."""
        for worker, meter in enumerate(self.meters):
            for n in self.running[worker]:
                meter.settle(n, 0, time.monotonic_ns())
        for _ in range(6):
            for clerk in self.clerks:
                asyncio.run(clerk.exchange(is_tick=True))
        entry = self.store.entries.get(ACCOUNT.name)
        if entry is not None:
            held = sum(
                lease.units for name, lease in entry.leases.items() if name not in self.store.dead
            )
            assert held == 0
            spent = LIMIT - entry.state.free(0)
            dead = sum(lease.units for lease in entry.leases.values())
            # What a dead worker had said before its answer was lost may be among the used.
            assert self.used <= spent - dead <= self.used + self.lost


Leases.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestLeases = Leases.TestCase


def test_calls_within_a_block_do_not_ask_the_store() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = clerk_of(store, share=0.5)
        await clerk.start()
        meter = meter_of(clerk, Account("x", "requests", 1_000))
        assert await meter.ask(1)
        before = store.num_exchanges
        for _ in range(90):
            assert meter.take(1, time.monotonic_ns())
        assert store.num_exchanges == before
        await clerk.close()

    asyncio.run(run())


def test_a_block_is_fetched_before_the_last_one_runs_out() -> None:
    async def run() -> None:
        clerk = clerk_of(FakeStore(), share=0.05)
        await clerk.start()
        meter = meter_of(clerk, Account("x", "requests", 10_000))
        assert await meter.ask(1)
        for _ in range(2_000):
            assert meter.take(1, time.monotonic_ns())
            await asyncio.sleep(0)
        await clerk.close()

    asyncio.run(run())


def test_who_gave_up_waiting_leaves_nothing_taken() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = clerk_of(store)
        await clerk.exchange(is_tick=True)
        meter = meter_of(clerk)
        before, after = asyncio.create_task(meter.ask(5)), asyncio.create_task(meter.ask(5))
        await asyncio.sleep(0)
        before.cancel()
        await asyncio.sleep(0)
        await clerk.exchange(is_tick=False)
        after.cancel()  # its units are there, but it does not look any more
        await asyncio.gather(before, after, return_exceptions=True)
        assert meter.taken == 0

    asyncio.run(run())


def test_a_debt_is_covered_before_another_call_is_let_in() -> None:
    async def run() -> None:
        clerk = clerk_of(FakeStore())
        await clerk.start()
        meter = meter_of(clerk)
        assert await meter.ask(1)
        meter.settle(1, LIMIT - 2, 0)
        assert await meter.ask(1)
        meter.settle(1, 3, 0)
        assert not meter.take(1, 0)
        assert not await asyncio.wait_for(meter.ask(1), 1)
        await clerk.close()

    asyncio.run(run())


def test_idle_units_go_back_so_that_others_can_use_them() -> None:
    async def run() -> None:
        store = FakeStore()
        one, other = clerk_of(store), clerk_of(store)
        for clerk in (one, other):
            await clerk.start()
        meter, late = meter_of(one), meter_of(other)
        assert await meter.ask(30)
        meter.settle(30, 0, time.monotonic_ns())
        assert not await late.ask(35)
        for _ in range(4):
            await one.exchange(is_tick=True)
        await asyncio.sleep(0.11)  # a refusal stands for a tenth of a second
        assert await late.ask(35)
        await one.close()
        await other.close()

    asyncio.run(run())


def test_units_too_few_for_the_call_that_asked_are_not_kept_from_other_workers() -> None:
    async def run() -> None:
        store = FakeStore()
        one, other = clerk_of(store), clerk_of(store)
        for clerk in (one, other):
            await clerk.start()
        meter, late = meter_of(one), meter_of(other)
        assert await meter.ask(30)
        for _ in range(3):
            assert not await late.ask(35)  # and asks again as soon as it may
            await asyncio.sleep(0.11)
        assert await meter.ask(10)
        await one.close()
        await other.close()

    asyncio.run(run())


def test_without_the_store_a_worker_goes_on_with_what_was_left_and_no_further() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = clerk_of(store)
        await clerk.exchange(is_tick=True)
        meter = meter_of(clerk)
        waiting = asyncio.create_task(meter.ask(10))
        await asyncio.sleep(0)
        await clerk.exchange(is_tick=False)
        assert await waiting
        store.is_gone = True
        await clerk.exchange(is_tick=True)
        assert clerk.is_down
        taken = sum([meter.take(1, 0) or await meter.ask(1) for _ in range(100)])
        assert taken == LIMIT - 10
        for n in (10, *[1] * taken):
            meter.settle(n, n, 0)
        store.is_gone = False
        await clerk.exchange(is_tick=True)
        assert not clerk.is_down
        await clerk.exchange(is_tick=True)
        assert store.entries["x"].state.free(0) == 0

    asyncio.run(run())


def test_without_the_store_a_rate_goes_on_refilling() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = clerk_of(store)
        await clerk.exchange(is_tick=True)
        meter = meter_of(clerk, Account("rate", "requests", 1_000, 1))
        waiting = asyncio.create_task(meter.ask(1_000))
        await asyncio.sleep(0)
        await clerk.exchange(is_tick=False)
        assert await waiting
        store.is_gone = True
        await clerk.exchange(is_tick=True)
        assert not await meter.ask(1_000)
        await asyncio.sleep(0.05)
        assert await meter.ask(40)

    asyncio.run(run())


def test_a_closed_gateway_says_503_once_its_block_is_used_up() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = clerk_of(store, is_open=False)
        await clerk.exchange(is_tick=True)
        meter = meter_of(clerk)
        waiting = asyncio.create_task(meter.ask(1))
        await asyncio.sleep(0)
        await clerk.exchange(is_tick=False)
        assert await waiting
        store.is_gone = True
        await clerk.exchange(is_tick=True)
        while meter.take(1, 0):
            pass
        with pytest.raises(ApiError) as caught:
            await meter.ask(1)
        assert caught.value.status == 503
        assert caught.value.code == "store_unavailable"

    asyncio.run(run())


def test_who_waits_when_the_store_goes_is_answered() -> None:
    async def run(is_open: bool) -> bool:
        store = FakeStore()
        clerk = clerk_of(store, is_open=is_open)
        await clerk.exchange(is_tick=True)
        waiting = asyncio.create_task(meter_of(clerk).ask(1))
        await asyncio.sleep(0)
        store.is_gone = True
        await clerk.exchange(is_tick=False)
        return await waiting

    assert asyncio.run(run(True))
    with pytest.raises(ApiError):
        asyncio.run(run(False))


def test_closing_gives_everything_back_and_reports_all_that_was_used() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = clerk_of(store)
        await clerk.start()
        meter = meter_of(clerk)
        assert await meter.ask(10)
        meter.settle(10, 7, 0)
        await clerk.close()
        entry = store.entries["x"]
        assert (LIMIT - entry.state.free(0), entry.leases[clerk.worker].units) == (7, 0)

    asyncio.run(run())


def test_a_changed_limit_holds_at_once_and_keeps_what_was_counted() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = clerk_of(store)
        await clerk.start()
        meter = meter_of(clerk)
        assert await meter.ask(30)
        meter.settle(30, 30, 0)
        meter.resize(50)
        assert not await meter.ask(25)
        await asyncio.sleep(0.11)
        assert await meter.ask(20)
        await clerk.close()

    asyncio.run(run())


def test_a_new_period_begins_with_a_whole_budget_and_calls_that_run_count_in_it() -> None:
    async def run() -> None:
        store, time_ = FakeStore(), FakeTime()
        clock = time_.clock()
        clerk = clerk_of(store)
        await clerk.start()
        budget = LeasedBudget(
            Account("b", "usd", 100), scope="key 'a'", period="day", clerk=clerk, clock=clock
        )
        assert await budget.ask(100)
        assert not await budget.ask(1)
        time_.pass_(86_400)
        assert not budget.take(50, int(time_.monotonic * 1e9))
        assert not await budget.ask(1), "the running call may still use all of it"
        budget.settle(100, 30, int(time_.monotonic * 1e9))
        await asyncio.sleep(0.11)
        assert await budget.ask(70)
        assert not await budget.ask(1)
        assert len(store.entries) == 2
        await clerk.close()

    asyncio.run(run())


async def let_in(meter: LeasedMeter) -> bool:
    return meter.take(1, time.monotonic_ns()) or await meter.ask(1)


def test_one_call_after_another_over_two_workers_is_never_one_too_many() -> None:
    async def run() -> None:
        store = FakeStore()
        clerks = [clerk_of(store, share=1 / 64) for _ in range(2)]
        for clerk in clerks:
            await clerk.start()
        meters = [meter_of(clerk, Account("p", "parallel", 1)) for clerk in clerks]
        for turn in range(40):
            meter = meters[turn % 2]
            assert await let_in(meter)
            meter.settle(1, 1, time.monotonic_ns())
        for clerk in clerks:
            await clerk.close()

    asyncio.run(run())


def test_all_places_of_a_limit_can_be_had_wherever_they_were_used_last() -> None:
    async def run(limit: int) -> None:
        store = FakeStore()
        clerks = [clerk_of(store, share=1 / 64) for _ in range(2)]
        for clerk in clerks:
            await clerk.start()
        one, other = (meter_of(clerk, Account("p", "parallel", limit)) for clerk in clerks)
        assert all([await let_in(one) for _ in range(limit)])
        for _ in range(limit - 1):
            one.settle(1, 1, time.monotonic_ns())
        spare = 2 * (limit // 64)
        assert all([await let_in(other) for _ in range(limit - 1 - spare)])
        for clerk in clerks:
            await clerk.close()

    asyncio.run(run(10))
    asyncio.run(run(1_000))


def test_a_place_that_another_call_holds_is_not_given_twice() -> None:
    async def run() -> None:
        store = FakeStore()
        clerks = [clerk_of(store) for _ in range(2)]
        for clerk in clerks:
            await clerk.start()
        one, other = (meter_of(clerk, Account("p", "parallel", 1)) for clerk in clerks)
        assert await let_in(one)
        assert not await let_in(one)
        before = store.num_exchanges
        assert not any(await asyncio.gather(*(let_in(other) for _ in range(100))))
        assert store.num_exchanges - before < 50, "those who wait ask together"
        waiting = asyncio.create_task(let_in(other))
        await asyncio.sleep(0.01)
        one.settle(1, 1, time.monotonic_ns())
        assert await waiting
        for clerk in clerks:
            await clerk.close()

    asyncio.run(run())


def test_many_places_at_a_time_are_taken_and_given_without_asking_the_store() -> None:
    async def run() -> None:
        store = FakeStore()
        clerk = clerk_of(store, share=1 / 64)
        await clerk.start()
        meter = meter_of(clerk, Account("p", "parallel", 1_000))
        assert await let_in(meter)
        before = store.num_exchanges
        for _ in range(500):
            assert meter.take(1, time.monotonic_ns())
            await asyncio.sleep(0)
            meter.settle(1, 1, time.monotonic_ns())
            await asyncio.sleep(0)
        assert store.num_exchanges - before <= 2
        await clerk.close()

    asyncio.run(run())


def test_without_the_store_a_place_too_many_is_refused_at_once() -> None:
    async def run() -> None:
        store = FakeStore()
        clerks = [clerk_of(store) for _ in range(2)]
        for clerk in clerks:
            await clerk.exchange(is_tick=True)
        one, other = (meter_of(clerk, Account("p", "parallel", 1)) for clerk in clerks)
        for meter, clerk in zip((one, other), clerks, strict=True):
            waiting = asyncio.create_task(let_in(meter))
            await asyncio.sleep(0)
            await clerk.exchange(is_tick=False)
            if meter is one:
                assert await waiting
            else:
                store.is_gone = True
                await clerk.exchange(is_tick=True)
                assert not await waiting

    asyncio.run(run())


def test_places_added_to_a_limit_are_there_at_once() -> None:
    async def run() -> None:
        store = FakeStore()
        clerks = [clerk_of(store) for _ in range(2)]
        for clerk in clerks:
            await clerk.start()
        one, other = (meter_of(clerk, Account("p", "parallel", 1)) for clerk in clerks)
        assert await let_in(one)
        assert not await let_in(one)
        assert not await let_in(other)
        for meter in (one, other):
            meter.resize(50)
        assert all([await let_in(meter) for meter in (one, other) for _ in range(24)])
        for clerk in clerks:
            await clerk.close()

    asyncio.run(run())
