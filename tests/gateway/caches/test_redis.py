"""The caches over a real Redis, which is killed and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from crossroads.gateway.caches import AnswerCache, CacheSettings, build_cache
from crossroads.gateway.remote import connect_redis
from tests.gateway.caches.calls import BOB, asked, told
from tests.gateway.redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server(durable=False) as running:
        yield running


def cache(redis: RedisServer, **settings: Any) -> AnswerCache:
    given = {"exact": True, "store": redis.url, "retry_s": 0.2, "timeout_ms": 500, **settings}
    built = build_cache(CacheSettings.model_validate(given))
    assert built is not None
    return built


async def until(what: Callable[[], Awaitable[Any]], seconds: float = 5.0) -> Any:
    end = time.monotonic() + seconds
    while True:
        found = await what()
        if found or time.monotonic() > end:
            return found
        await asyncio.sleep(0.02)


def test_replicas_share_answers(redis: RedisServer) -> None:
    async def run() -> None:
        one, other = cache(redis), cache(redis)
        one.put(asked("shared"), told())
        kept = await until(lambda: other.get(asked("shared")))
        assert kept.answer == told().answer | {k: kept.answer[k] for k in ("id", "created")}
        assert kept.kind == "exact"
        assert await other.get(asked("shared", client=BOB)) is None
        await one.close()
        await other.close()

    asyncio.run(run())


def test_answers_expire_in_redis(redis: RedisServer) -> None:
    async def run() -> None:
        store = cache(redis, exact={"ttl_s": 0.3})
        store.put(asked("brief"), told())
        assert await until(lambda: store.get(asked("brief")))
        await asyncio.sleep(0.35)
        assert await store.get(asked("brief")) is None
        await store.close()

    asyncio.run(run())


def test_what_waits_is_sent_at_the_close(redis: RedisServer) -> None:
    async def run() -> None:
        one, other = cache(redis), cache(redis)
        for number in range(150):
            one.put(asked(f"late {'x' * number}"), told())
        await one.close()
        assert await other.get(asked(f"late {'x' * 149}")) is not None
        await other.close()

    asyncio.run(run())


def test_namespaces_share_nothing(redis: RedisServer) -> None:
    async def run() -> None:
        one, other = cache(redis), cache(redis, namespace="staging")
        one.put(asked("apart"), told())
        assert await until(lambda: one.get(asked("apart")))
        assert await other.get(asked("apart")) is None
        await one.close()
        await other.close()

    asyncio.run(run())


def test_replicas_share_what_they_compare(redis: RedisServer) -> None:
    settings = {"exact": None, "semantic": {"threshold": 0.8}}

    async def run() -> None:
        one, other = cache(redis, **settings), cache(redis, **settings)
        assert await other.get(asked("What is the capital of Peru?")) is None  # starts to follow
        one.put(asked("What is the capital of Peru?"), told("Lima."))
        kept = await until(lambda: other.get(asked("What's the capital of Peru")))
        assert kept.kind == "semantic"
        assert kept.answer["choices"][0]["message"]["content"] == "Lima."
        await one.close()
        late = cache(redis, **settings)
        assert await until(lambda: late.get(asked("What's the capital of Peru")))
        await other.close()
        await late.close()

    asyncio.run(run())


def test_without_redis_every_request_is_a_miss_and_none_waits() -> None:
    async def run() -> None:
        with redis_server(durable=False) as server:
            store = cache(server, retry_s=0.3)
            store.put(asked("kept"), told())
            assert await until(lambda: store.get(asked("kept")))
            server.kill()
            assert store.health()["exact"]["state"] == "ok"
            assert await store.get(asked("gone")) is None
            assert store.health()["exact"]["state"] == "unreachable"
            assert store.health()["status"] == "degraded"
            failures = store.health()["exact"]["failures"]
            for number in range(50):
                assert await store.get(asked(f"gone {'x' * number}")) is None
                store.put(asked(f"gone {'x' * number}"), told())
            assert store.health()["exact"]["failures"] <= failures + 2, "it is asked all the time"
            server.start()
            store.put(asked("back"), told())

            async def is_back() -> bool:
                store.put(asked("back"), told())
                kept = await store.get(asked("back"))
                return kept is not None and kept.kind == "exact"

            assert await until(is_back)
            assert store.health()["exact"]["state"] == "ok"
            assert store.health()["status"] == "ok"
            await store.close()

    asyncio.run(run())


def test_a_value_that_is_no_answer_is_a_miss(redis: RedisServer) -> None:
    async def run() -> None:
        store = cache(redis, namespace="spoilt")
        store.put(asked("spoilt"), told())
        assert await until(lambda: store.get(asked("spoilt")))
        client = connect_redis(redis.url)
        async for key in client.scan_iter("spoilt:answer:*"):
            await client.set(key, b"nonsense")
        await client.aclose()
        assert await store.get(asked("spoilt")) is None
        await store.close()

    asyncio.run(run())


def test_what_is_compared_stays_in_this_process_while_redis_is_gone() -> None:
    async def run() -> None:
        with redis_server(durable=False) as server:
            store = cache(server, exact=None, semantic={"threshold": 0.8})
            server.kill()
            store.put(asked("What is the capital of Peru?"), told("Lima."))
            assert await store.get(asked("What's the capital of Peru")) is not None
            await store.close()

    asyncio.run(run())
