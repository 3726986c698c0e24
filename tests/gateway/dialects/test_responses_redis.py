from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossroads.core.errors import MissingExtraError
from crossroads.gateway.dialects import ResponsesSettings, Stored, build_store
from crossroads.gateway.dialects.responses_redis import RedisStore
from crossroads.gateway.errors import ApiError

pytest.importorskip("redis", reason="redis-py is not installed")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server on a socket of its own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    folder = tmp_path_factory.mktemp("redis")
    path = Path(folder, "r.sock")
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 10
        while not path.exists():
            assert time.monotonic() < give_up and server.poll() is None, "Redis did not start"
            time.sleep(0.01)
        yield f"unix://{path}"
    finally:
        server.terminate()
        server.wait()


def stored(id: str, text: str = "x") -> Stored:
    return Stored({"id": id, "output": [text]}, [{"role": "user", "content": "Hi"}])


def test_every_worker_finds_what_one_has_put(url: str) -> None:
    async def run() -> None:
        one, two = (RedisStore.from_url(url, ttl_s=60, max_bytes=10_000) for _ in range(2))
        one.put("me", stored("a"))
        assert await one.get("me", "a") == stored("a"), "at once, too"
        assert await two.get("me", "a") == stored("a")
        assert await two.get("other", "a") is None
        assert not await two.delete("other", "a")
        assert await two.delete("me", "a")
        assert await one.get("me", "a") is None
        await one.close()
        await two.close()

    asyncio.run(run())


def test_names_cannot_run_into_each_other(url: str) -> None:
    async def run() -> None:
        store = RedisStore.from_url(url, ttl_s=60, max_bytes=10_000)
        store.put("a", stored("bc"))
        assert await store.get("ab", "c") is None
        await store.close()

    asyncio.run(run())


def test_the_server_drops_what_is_too_old_and_never_gets_what_is_too_large(url: str) -> None:
    async def run() -> None:
        store = RedisStore.from_url(url, ttl_s=0.05, max_bytes=200)
        store.put("me", stored("old"))
        store.put("me", stored("large", "x" * 200))
        assert await store.get("me", "old") is not None
        assert await store.get("me", "large") is None
        await asyncio.sleep(0.1)
        assert await store.get("me", "old") is None
        await store.close()

    asyncio.run(run())


def test_a_server_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    over: list[asyncio.Task[None]] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        over.append(current)
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async def run() -> None:
        server = await asyncio.start_unix_server(hang, f"{tmp_path}/s")
        store = RedisStore.from_url(
            f"unix://{tmp_path}/s", ttl_s=60, max_bytes=10_000, timeout_s=0.05
        )
        store.put("me", stored("a"))
        with pytest.raises(ApiError, match="try again"):
            await store.get("me", "a")
        await store.close()
        await asyncio.gather(*over)
        server.close()
        await server.wait_closed()

    asyncio.run(run())


def test_without_the_library_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(MissingExtraError, match=r"crossroads\[redis\]"):
        build_store(ResponsesSettings(store="redis://127.0.0.1:1/0"))


def test_an_outage_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        store = RedisStore.from_url(f"unix://{tmp_path}/none", ttl_s=60, max_bytes=10_000)
        for number in range(5):
            store.put("me", stored(str(number)))
        await store.close()

    asyncio.run(run())
    assert len(caplog.records) == 1 and "unreachable" in caplog.text


def test_without_the_server_nothing_is_kept_and_asking_is_a_503(tmp_path: Path) -> None:
    async def run() -> None:
        settings = ResponsesSettings(store=f"unix://{tmp_path}/nobody.sock")
        store = build_store(settings)
        assert isinstance(store, RedisStore)
        store.put("me", stored("a"))
        for ask in (store.get, store.delete):
            with pytest.raises(ApiError) as raised:
                await ask("me", "a")
            assert (raised.value.status, raised.value.code) == (503, "store_unavailable")
        await store.close()

    asyncio.run(run())
