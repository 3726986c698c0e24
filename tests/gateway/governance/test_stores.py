"""SQLite and Redis do what the reference arithmetic of ``stores.base`` does."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.gateway.governance.accounts import Account, Balance
from crossroads.gateway.governance.stores import Answer, Ask, Store, StoreError, open_store
from crossroads.gateway.governance.stores.base import Entry, exchange, new_entry
from crossroads.gateway.remote import connect_redis
from tests.gateway.redis_server import RedisServer, redis_server

TTL_MS = 60_000
DAY = 86_400
names = itertools.count()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server(durable=False) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"], scope="module")
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path_factory.mktemp('store') / 'limits.db'}"
    running: RedisServer = request.getfixturevalue("redis")
    return running.url


def account(limit: int = 10, period_s: int = 0) -> Account:
    return Account(f"account-{next(names)}", "usd", limit, period_s)


def run(url: str, *exchanges: tuple[str, int, Ask]) -> list[Answer]:
    async def all_() -> list[Answer]:
        store = open_store(url)
        try:
            return [(await store.exchange(worker, ttl, [ask]))[0] for worker, ttl, ask in exchanges]
        finally:
            await store.close()

    return asyncio.run(all_())


reports = st.tuples(
    st.sampled_from(["one", "two", "three"]),
    st.booleans(),  # whether it is the last report once more
    *(st.integers(0, 12) for _ in range(5)),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 40), st.sampled_from([0, DAY]), st.lists(reports, min_size=1, max_size=12))
def test_a_store_answers_as_the_reference_does(
    url: str, limit: int, period_s: int, found: list[tuple[Any, ...]]
) -> None:
    subject = account(limit, period_s)
    reference = new_entry(subject, 0)
    seqs = dict.fromkeys(["one", "two", "three"], 0)
    asks, expected = [], []
    for worker, is_repeated, used, give, calls, need, block in found:
        seqs[worker] += 0 if is_repeated else 1
        ask = Ask(subject, seqs[worker], used, give, calls, need, block)
        asks.append((worker, TTL_MS, ask))
        expected.append(exchange(reference, ask, worker, 0, lambda _: True))
    assert run(url, *asks) == expected


operations = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 9), st.booleans()),
    max_size=40,
)


@given(st.integers(1, 30), operations)
def test_leases_and_use_together_are_never_more_than_the_limit(
    limit: int, found: list[tuple[str, int, int, bool]]
) -> None:
    """Whoever asks for what, reports twice, or dies: as long as nobody uses more than it has."""
    subject = Account("x", "usd", limit)
    entry = Entry(Balance(limit))
    held, dead = dict.fromkeys("abc", 0), set[str]()
    used_in_all, seq = 0, 0
    for worker, need, used, dies in found:
        seq += 1
        if dies:
            dead.add(worker)
            held[worker] = 0
            continue
        dead.discard(worker)
        spends = min(used, held[worker])
        used_in_all += spends
        ask = Ask(subject, seq, used=spends, need=need, block=need)
        answer = exchange(entry, ask, worker, 0, lambda name: name not in dead)
        again = exchange(entry, ask, worker, 0, lambda name: name not in dead)
        held[worker] = again.held
        assert again.spent - again.leased == used_in_all
        assert answer.spent <= again.spent <= limit
        assert again.free == limit - again.spent
        assert sum(held.values()) + used_in_all <= limit


def test_many_accounts_are_asked_at_once(url: str) -> None:
    asks = [Ask(account(limit), 1, need=limit) for limit in range(1, 151)]

    async def all_() -> list[Answer]:
        store = open_store(url)
        answers = await store.exchange("one", TTL_MS, asks)
        assert await store.exchange("one", TTL_MS, []) == []
        await store.close()
        return answers

    assert [answer.held for answer in asyncio.run(all_())] == list(range(1, 151))


def test_the_lease_of_a_worker_that_is_not_heard_of_returns(url: str) -> None:
    for period_s in (0, DAY):
        subject = account(10, period_s)
        (first,) = run(url, ("dead", 20, Ask(subject, 1, need=10)))
        assert first.held == 10
        (early,) = run(url, ("other", TTL_MS, Ask(subject, 1, need=5)))
        assert early.held in (0, 5)  # 5 where the machine was slow
        time.sleep(0.05)
        (late,) = run(url, ("other", TTL_MS, Ask(subject, 2, need=5 - early.held)))
        assert (late.held, late.free) == (5, 5)


def test_use_beyond_a_lease_is_a_debt(url: str) -> None:
    subject = account(10)
    answers = run(
        url,
        ("one", TTL_MS, Ask(subject, 1, need=4)),
        ("one", TTL_MS, Ask(subject, 2, used=15)),
        ("two", TTL_MS, Ask(subject, 1, need=1)),
    )
    assert [answer.free for answer in answers] == [6, -5, -5]
    assert answers[-1].held == 0


def test_a_bucket_refills_with_time(url: str) -> None:
    subject = account(100, 1)
    (first,) = run(url, ("one", TTL_MS, Ask(subject, 1, need=100)))
    assert first.free == 0
    time.sleep(0.1)
    (later,) = run(url, ("one", TTL_MS, Ask(subject, 2)))
    assert 9 <= later.free <= 100


def test_no_more_time_passes_than_the_worker_saw(url: str) -> None:
    """A store's clock that jumped ahead refills nothing: here the worker says what has passed."""
    subject = Account("jump", "tokens", 1_000, 10)
    entry = new_entry(subject, 0)
    exchange(entry, Ask(subject, 1, need=1_000), "one", 0, lambda _: True)
    jumped = exchange(entry, Ask(subject, 2, since_ms=50), "one", 10**9, lambda _: True)
    assert jumped.free == 105  # 50 ms, and a second of slack
    assert exchange(entry, Ask(subject, 3, since_ms=50), "one", 0, lambda _: True).free == 105
    subject = account(1_000, 10)
    run(url, ("one", TTL_MS, Ask(subject, 1, need=1_000)))
    time.sleep(0.02)
    (answer,) = run(url, ("one", TTL_MS, Ask(subject, 2, since_ms=0)))
    assert answer.free <= 100


def test_a_jump_of_the_redis_clock_refills_nothing_the_worker_did_not_see(
    redis: RedisServer,
) -> None:
    subject = account(1_000, 10)
    run(redis.url, ("one", TTL_MS, Ask(subject, 1, need=1_000)))

    async def jump() -> None:  # forward: what was written last is long ago now
        async with connect_redis(redis.url) as client:
            await client.hset(f"{{crossroads}}:account:{subject.name}", "last", "0")

    asyncio.run(jump())
    (answer,) = run(redis.url, ("one", TTL_MS, Ask(subject, 2, since_ms=50)))
    assert answer.free == 105  # 50 ms, and a second of slack


def test_documents_are_swapped_only_where_they_are_as_they_were(url: str) -> None:
    async def all_() -> None:
        store = open_store(url)
        name = f"document-{next(names)}"
        assert await store.read(name) is None
        assert not await store.swap(name, b"other", b"new")
        assert await store.swap(name, None, b"\x00new")
        assert not await store.swap(name, None, b"newer")
        assert await store.read(name) == b"\x00new"
        assert await store.swap(name, b"\x00new", b"newer")
        await store.close()

    asyncio.run(all_())


def test_counts_survive_a_restart(url: str) -> None:
    subject = account(10)
    run(url, ("one", TTL_MS, Ask(subject, 1, need=4)), ("one", TTL_MS, Ask(subject, 2, used=4)))
    (answer,) = run(url, ("two", TTL_MS, Ask(subject, 1, need=10)))
    assert (answer.held, answer.spent, answer.leased) == (6, 10, 6)


async def is_gone_for_a_while(
    store: Store, breaks: Callable[[], object], mends: Callable[[], object]
) -> None:
    ask = Ask(account(), 1, need=1)
    await store.exchange("one", TTL_MS, [ask])
    breaks()
    with pytest.raises(StoreError):
        await store.exchange("one", TTL_MS, [ask])
    with pytest.raises(StoreError):
        await store.read("x")
    mends()
    assert (await store.exchange("one", TTL_MS, [ask]))[0].held >= 1
    await store.close()


def test_a_killed_redis_is_missed_and_reached_again() -> None:
    with redis_server() as server:
        asyncio.run(is_gone_for_a_while(open_store(server.url), server.kill, server.start))


def test_a_locked_sqlite_file_is_waited_for_and_reached_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossroads.gateway.governance.stores.sqlite._WAIT_S", 0.05)
    path = tmp_path / "limits.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        asyncio.run(
            is_gone_for_a_while(
                open_store(f"sqlite:{path}"),
                lambda: other.execute("BEGIN EXCLUSIVE"),
                lambda: other.execute("ROLLBACK"),
            )
        )


def test_a_file_that_is_no_database_is_a_store_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "limits.db"
    path.write_bytes(b"not a database" * 100)
    store = open_store(f"sqlite:{path}")
    with pytest.raises(StoreError, match="file is not a database"):
        asyncio.run(store.read("x"))


def test_many_that_open_a_new_file_at_once_all_reach_it(tmp_path: Path) -> None:
    async def all_() -> list[list[Answer]]:
        stores = [open_store(f"sqlite:{tmp_path / 'limits.db'}") for _ in range(12)]
        subject = account(100)
        found = await asyncio.gather(
            *(
                store.exchange(f"worker-{i}", TTL_MS, [Ask(subject, 1, need=1)])
                for i, store in enumerate(stores)
            )
        )
        for store in stores:
            await store.close()
        return found

    answers = asyncio.run(all_())
    assert sorted(answer.free for (answer,) in answers) == list(range(88, 100))


def test_nothing_is_made_on_the_disk_before_the_first_use(tmp_path: Path) -> None:
    async def use() -> None:
        store = open_store(f"sqlite:{tmp_path}/a/b/limits.db")
        assert list(tmp_path.iterdir()) == []
        assert await store.read("x") is None
        assert (tmp_path / "a" / "b" / "limits.db").is_file()
        await store.close()
        late = open_store(f"sqlite:{tmp_path}/c/limits.db")
        (tmp_path / "c").touch()
        with pytest.raises(StoreError, match="limits"):
            await late.read("x")
        await late.close()

    asyncio.run(use())


def test_what_was_spent_is_for_its_owner_to_read(tmp_path: Path) -> None:
    path = tmp_path / "limits.db"
    run(f"sqlite:{path}", ("worker", TTL_MS, Ask(account(), 1, 0, 0, 0, 1, False)))
    assert {found.stat().st_mode & 0o777 for found in tmp_path.iterdir()} == {0o600}


def test_a_path_that_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "limits.db"):
        with pytest.raises(InputError, match="store"):
            open_store(f"sqlite:{path}")
