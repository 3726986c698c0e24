"""Idempotency keys: the same request twice is answered once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crossroads.gateway.contracts import Choice, Tally
from crossroads.gateway.engine import Engine, Idempotency, IdempotencySettings, digest_of
from crossroads.gateway.engine.idempotency import Response
from crossroads.gateway.errors import ApiError
from tests.gateway.engine.scripted import FakeTime, Scripted, Step, a_call

DIGEST = digest_of("/chat/completions", b'{"model":"a"}')
OTHER = digest_of("/chat/completions", b'{"model":"b"}')


def a_store(**settings: Any) -> tuple[Idempotency, FakeTime]:
    fake = FakeTime()
    return Idempotency(IdempotencySettings(**settings), clock=fake), fake


async def ask(
    store: Idempotency,
    body: bytes = b"answer",
    *,
    client: str = "key_1",
    key: str = "k",
    digest: bytes = DIGEST,
    status: int = 200,
) -> tuple[bytes, bool]:
    """Answer a request; return what the client gets, and whether that was kept from before."""
    async with store.enter(client, key, digest) as slot:
        if slot.earlier is not None:
            return slot.earlier.body, True
        slot.keep(status, [(b"content-type", b"x")], body)
        return body, False


def test_a_repeated_request_gets_the_same_bytes() -> None:
    async def main() -> None:
        store, _ = a_store()
        assert await ask(store, b"one") == (b"one", False)
        assert await ask(store, b"two") == (b"one", True)
        async with store.enter("key_1", "k", DIGEST) as slot:
            assert slot.earlier == Response(200, [(b"content-type", b"x")], b"one")

    asyncio.run(main())


def test_duplicates_in_flight_are_answered_and_billed_once() -> None:
    async def main() -> None:
        upstream = Scripted("a", Step(first_s=0.01))
        engine, store = Engine({"a": upstream}), Idempotency()
        tallies: list[Tally] = []

        async def request() -> bytes:
            async with store.enter("key_1", "k", DIGEST) as slot:
                if slot.earlier is not None:
                    return slot.earlier.body
                tally = Tally()
                tallies.append(tally)
                body = str(await engine.complete(a_call(), Choice(model="a"), tally)).encode()
                slot.keep(200, [], body)
                return body

        answers = await asyncio.gather(*(request() for _ in range(20)))
        assert len(set(answers)) == 1
        assert len(upstream.orders) == len(tallies) == 1
        assert len(tallies[0].attempts) == 1

    asyncio.run(main())


def test_keys_are_of_one_client_each() -> None:
    async def main() -> None:
        store, _ = a_store()
        assert await ask(store, b"one") == (b"one", False)
        assert await ask(store, b"two", client="key_2") == (b"two", False)
        assert await ask(store, b"three", key="k2") == (b"three", False)

    asyncio.run(main())


@pytest.mark.parametrize("is_running", [False, True])
def test_a_key_used_with_another_request_is_refused(is_running: bool) -> None:
    async def main() -> None:
        store, _ = a_store()
        async with store.enter("key_1", "k", DIGEST) as slot:
            slot.keep(200, [], b"one")
            if is_running:
                with pytest.raises(ApiError) as raised:
                    await ask(store, digest=OTHER)
        if not is_running:
            with pytest.raises(ApiError) as raised:
                await ask(store, digest=OTHER)
        assert (raised.value.status, raised.value.code) == (422, "idempotency_key_reused")

    asyncio.run(main())


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_what_failed_is_not_kept(status: int) -> None:
    async def main() -> None:
        store, _ = a_store()
        assert await ask(store, b"failed", status=status) == (b"failed", False)
        assert await ask(store, b"good") == (b"good", False)

    asyncio.run(main())


def test_when_the_first_request_fails_one_of_those_waiting_takes_its_place() -> None:
    async def main() -> None:
        store, _ = a_store()
        num_run = 0
        first_is_in = asyncio.Event()

        async def failing() -> None:
            async with store.enter("key_1", "k", DIGEST):
                first_is_in.set()
                await asyncio.sleep(0.01)
                raise RuntimeError

        async def waiting() -> bytes:
            nonlocal num_run
            async with store.enter("key_1", "k", DIGEST) as slot:
                if slot.earlier is not None:
                    return slot.earlier.body
                num_run += 1
                await asyncio.sleep(0)
                slot.keep(200, [], b"good")
                return b"good"

        first = asyncio.create_task(failing())
        await first_is_in.wait()
        answers = await asyncio.gather(*(waiting() for _ in range(5)))
        assert answers == [b"good"] * 5
        assert num_run == 1
        with pytest.raises(RuntimeError):
            await first

    asyncio.run(main())


def test_a_client_that_leaves_while_waiting_does_not_disturb_the_first() -> None:
    async def main() -> None:
        store, _ = a_store()
        async with store.enter("key_1", "k", DIGEST) as slot:
            waiting = asyncio.create_task(ask(store))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            slot.keep(200, [], b"one")
        assert await ask(store) == (b"one", True)

    asyncio.run(main())


def test_waiting_too_long_is_a_conflict() -> None:
    async def main() -> None:
        store = Idempotency(IdempotencySettings(wait_s=0.01))
        async with store.enter("key_1", "k", DIGEST):
            with pytest.raises(ApiError) as raised:
                await ask(store)
        assert (raised.value.status, raised.value.code) == (409, "idempotency_key_in_use")
        assert raised.value.headers == [(b"retry-after", b"1")]

    asyncio.run(main())


def test_answers_are_forgotten_after_their_time() -> None:
    async def main() -> None:
        store, fake = a_store(keep_s=60.0)
        await ask(store, b"one")
        fake.now += 59.9
        assert await ask(store) == (b"one", True)
        fake.now += 0.1
        assert await ask(store, b"two") == (b"two", False)
        assert len(store) == 1

    asyncio.run(main())


def test_the_number_and_the_bytes_of_what_is_kept_are_bounded() -> None:
    async def main() -> None:
        store, _ = a_store(max_entries=3)
        for number in range(5):
            await ask(store, b"x" * 10, key=str(number))
        assert (len(store), store.num_bytes) == (3, 30)
        assert await ask(store, key="4") == (b"x" * 10, True)
        assert await ask(store, key="0") == (b"answer", False)
        store, _ = a_store(max_mib=1.0, max_answer_mib=0.5)
        for number in range(5):
            await ask(store, b"x" * 400_000, key=str(number))
        assert store.num_bytes == 800_000
        await ask(store, b"x" * 600_000, key="large")
        assert (await ask(store, key="large"))[1] is False

    asyncio.run(main())


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_an_unusable_key_is_refused(key: str) -> None:
    with pytest.raises(ApiError, match="1 to 255 characters") as raised:
        asyncio.run(ask(a_store()[0], key=key))
    assert raised.value.status == 400


def test_the_digest_tells_paths_and_bodies_apart() -> None:
    digests = {digest_of(path, body) for path in ("/a", "/b") for body in (b"", b"1", b"2")}
    assert len(digests) == 6
    assert digest_of("/a", b"1") == digest_of("/a", b"1")


def test_the_digest_tells_headers_apart_but_not_their_order() -> None:
    pairs = [(b"x-a", b"1"), (b"x-b", b"2")]
    others = [[], pairs[:1], [(b"x-a", b"2")], [(b"x-a", b"1x-b"), (b"", b"2")]]
    digests = {digest_of("/a", b"1", headers) for headers in (pairs, *others)}
    assert len(digests) == 5
    assert digest_of("/a", b"1", pairs) == digest_of("/a", b"1", reversed(pairs))
    assert digest_of("/a", b"1", []) == digest_of("/a", b"1")
