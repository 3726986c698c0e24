from __future__ import annotations

import asyncio
import sys

import pytest

from crossroads.core.errors import InputError, MissingExtraError, UnavailableError
from crossroads.gateway.remote import (
    connect_redis,
    failures,
    ping_redis,
    safe_url,
    unavailable,
)
from tests.gateway.redis_server import redis_server


def test_a_client_reaches_a_server_by_socket_and_by_port() -> None:
    async def ask(url: str) -> object:
        client = connect_redis(url)
        try:
            await client.set("name", "value")
            return await client.get("name")
        finally:
            await client.aclose()

    with redis_server(durable=False) as server:
        assert asyncio.run(ask(server.url)) == b"value"
        assert asyncio.run(ask(server.tcp_url)) == b"value"


def test_a_killed_server_is_reached_again_with_its_data_by_the_same_client() -> None:
    async def run() -> None:
        with redis_server() as server:
            client = connect_redis(server.url)
            await client.set("kept", "yes")
            server.kill()
            with pytest.raises(failures()):
                await client.get("kept")
            server.start()
            assert await client.get("kept") == b"yes"
            await client.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("url", ["http://host", "host:6379", "", "redis://host:port"])
def test_another_kind_of_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="store"):
        connect_redis(url)


def test_no_message_shows_the_password() -> None:
    url = "redis://me:hunter2@host:6379/0?password=hunter2"
    assert safe_url(url) == "redis://me:***@host:6379/0"
    assert "hunter2" not in str(unavailable(url, OSError("refused")))
    for wrong in ("http://me:hunter2@host", "redis://:hunter2/a@host", "redis://:hunter2#a@host"):
        with pytest.raises(InputError) as caught:
            connect_redis(wrong)
        assert "hunter2" not in str(caught.value)


def test_a_server_is_asked_whether_it_is_there() -> None:
    with redis_server(durable=False) as server:
        asyncio.run(ping_redis(server.url))
    for url in (server.url, server.tcp_url):
        with pytest.raises(UnavailableError, match=r"[^.]; start it"):
            asyncio.run(ping_redis(url))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("redis", "redis.asyncio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"crossroads\[redis\]"):
        connect_redis("redis://host")
