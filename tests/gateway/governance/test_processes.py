"""Limits and budgets across real processes, over SQLite and a real Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.governance.asking import SECRET, Worker
from tests.gateway.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.slow  # each starts up to four interpreters


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server(durable=False) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'limits.db'}"
    url: str = request.getfixturevalue("redis").url
    return url


@contextmanager
def workers(
    num: int, store: str, *, on_failure: str = "open", ttl_s: float = 4.0, **key: Any
) -> Iterator[list[Worker]]:
    given = {
        "keys": [{"name": "a", "secret": SECRET, **key}],
        "store": store,
        "on_store_failure": on_failure,
        "lease_ttl_s": ttl_s,
    }
    running = [Worker(given) for _ in range(num)]
    try:
        for worker in running:
            worker.ask(describe=True)
        yield running
    finally:
        for worker in running:
            worker.kill()


def until(holds: Callable[[], bool], *, seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


def granted_by(running: list[Worker], **order: Any) -> int:
    for worker in running:
        worker.tell(**order)
    return sum(worker.hear().get("200", 0) for worker in running)


def test_100_parallel_requests_over_4_workers_spend_a_budget_of_10_and_no_more(store: str) -> None:
    budget = {"usd": 10.0, "per": "30d"}
    with workers(4, store, name="budget", budgets=[budget]) as running:
        assert granted_by(running, num=25, usd=1.0, settle=1.0) == 10
        until(lambda: _budget(running[0])["spent_usd"] == 10.0)


def test_a_limit_of_10_a_day_over_4_workers_lets_10_requests_in(store: str) -> None:
    with workers(4, store, name="day", limits={"requests_per_day": 10}) as running:
        assert granted_by(running, num=25, settle=0.0) == 10


def test_10_calls_run_at_a_time_over_4_workers_and_their_places_are_free_again(store: str) -> None:
    with workers(4, store, name="slots", limits={"parallel": 10}) as running:
        assert granted_by(running, num=25) == 10
        for worker in running:
            worker.ask(release=True)

        def all_fit_again() -> bool:
            num = running[0].ask(num=10).get("200", 0)
            running[0].ask(release=True)
            return num == 10

        until(all_fit_again)


def test_a_client_that_asks_one_after_another_is_never_refused_by_either_worker(store: str) -> None:
    with workers(2, store, name="sequence", limits={"parallel": 1}) as running:
        found = [running[turn % 2].ask(num=1, settle=0.0) for turn in range(40)]
        assert found == [{"200": 1}] * 40


def test_the_lease_of_a_killed_worker_comes_back_after_its_time_to_live(store: str) -> None:
    budget = {"usd": 10.0, "per": "30d"}
    with workers(2, store, ttl_s=1.5, name="killed", budgets=[budget]) as (first, second):
        assert first.ask(num=10, usd=1.0) == {"200": 10}
        assert second.ask(num=1, usd=1.0) == {"429": 1}
        first.kill()
        until(lambda: second.ask(num=1, usd=1.0) == {"200": 1})
        assert second.ask(num=9, usd=1.0) == {"200": 9}


def _budget(worker: Worker) -> dict[str, Any]:
    budget: dict[str, Any] = worker.ask(describe=True)["keys"][0]["budgets"][0]
    return budget


def _health(worker: Worker) -> str:
    status: str = worker.ask(describe=True)["health"]["status"]
    return status


def test_without_redis_open_workers_overspend_by_no_more_than_what_was_left_for_each() -> None:
    budget = {"usd": 10.0, "per": "30d"}
    with redis_server() as server, workers(2, server.url, budgets=[budget]) as running:
        before = granted_by(running, num=2, usd=1.0, settle=1.0)
        until(lambda: all(_budget(worker)["spent_usd"] == 4.0 for worker in running))
        server.kill()
        meanwhile = granted_by(running, num=50, usd=1.0, settle=1.0)
        assert before == 4
        assert 6 <= meanwhile <= 12  # at least what was left, at most that for each worker
        until(lambda: [_health(worker) for worker in running] == ["degraded", "degraded"])
        server.start()
        until(lambda: [_health(worker) for worker in running] == ["ok", "ok"])
        until(lambda: all(_budget(w)["spent_usd"] == 4.0 + meanwhile for w in running))
        assert granted_by(running, num=5, usd=1.0, settle=1.0) == 0


def test_without_redis_closed_workers_refuse_and_serve_again_after() -> None:
    limits = {"requests_per_day": 1_000}
    with (
        redis_server() as server,
        workers(1, server.url, on_failure="closed", limits=limits) as (worker,),
    ):
        assert worker.ask(num=1, settle=0.0) == {"200": 1}
        server.kill()
        found = worker.ask(num=500, settle=0.0)
        assert found.keys() <= {"200", "503"}
        assert found["200"] <= 15 + 8  # the block at hand: 1/64 of the limit, or 8 calls
        assert _health(worker) == "failing"
        server.start()
        until(lambda: worker.ask(num=100, settle=0.0) == {"200": 100})


def test_redis_killed_and_started_under_load_leaves_no_call_unanswered_or_uncounted() -> None:
    budget = {"usd": 1_000.0, "per": "30d"}
    with redis_server() as server, workers(2, server.url, budgets=[budget]) as running:
        granted = 0
        for turn in range(20):
            for worker in running:
                worker.tell(num=10, usd=1.0, settle=1.0)
            if turn % 10 == 3:
                server.kill()
            if turn % 10 == 7:
                server.start()
            answers = [worker.hear() for worker in running]
            assert [sum(answer.values()) for answer in answers] == [10, 10]
            granted += sum(answer.get("200", 0) for answer in answers)
        assert granted == 400
        until(lambda: [_health(worker) for worker in running] == ["ok", "ok"])
        until(lambda: all(_budget(worker)["spent_usd"] == granted for worker in running))


def test_a_worker_that_ends_gives_back_its_lease_at_once(store: str) -> None:
    with workers(2, store, name="ends", limits={"requests_per_day": 64}) as (first, second):
        first.ask(num=1, settle=0.0)
        first.stop()
        assert second.ask(num=64, settle=0.0) == {"200": 63, "429": 1}
