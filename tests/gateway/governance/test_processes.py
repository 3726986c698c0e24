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
def workers(num: int, store: str, **key: Any) -> Iterator[list[Worker]]:
    key = {"name": "a", "secret": SECRET, **key}
    running = [Worker({"keys": [key], "store": store, "lease_ttl_s": 1.5}) for _ in range(num)]
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
        until(lambda: granted_by(running[:1], num=10) == 10 or _released(running[0]))


def test_the_lease_of_a_killed_worker_comes_back_after_its_time_to_live(store: str) -> None:
    budget = {"usd": 10.0, "per": "30d"}
    with workers(2, store, name="killed", budgets=[budget]) as (first, second):
        assert first.ask(num=10, usd=1.0) == {"200": 10}
        assert second.ask(num=1, usd=1.0) == {"429": 1}
        first.kill()
        until(lambda: second.ask(num=1, usd=1.0) == {"200": 1})
        assert second.ask(num=9, usd=1.0) == {"200": 9}


def _budget(worker: Worker) -> dict[str, Any]:
    budget: dict[str, Any] = worker.ask(describe=True)["keys"][0]["budgets"][0]
    return budget


def _released(worker: Worker) -> bool:
    worker.ask(release=True)
    return False
