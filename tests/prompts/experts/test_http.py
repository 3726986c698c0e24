from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from crossroads.core.errors import InputError
from crossroads.prompts.experts.base import Completion, ExpertError
from crossroads.prompts.experts.environment import expand
from crossroads.prompts.experts.http import HttpExpert
from crossroads.prompts.experts.timeouts import Timeouts
from tests.gateway.fake_upstream import TEXT, USAGE, FakeUpstream

REQUEST: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def upstream() -> Any:
    with FakeUpstream() as running:
        yield running


def complete(expert: HttpExpert, **fields: Any) -> Completion:
    async def run() -> Completion:
        await expert.start()
        try:
            return await expert.complete({**REQUEST, **fields})
        finally:
            await expert.close()

    return asyncio.run(run())


def read_stream(expert: HttpExpert) -> list[Any]:
    async def run() -> list[Any]:
        await expert.start()
        try:
            return [chunk async for chunk in expert.stream(REQUEST)]
        finally:
            await expert.close()

    return asyncio.run(run())


def expert(upstream: FakeUpstream, model: str, **settings: Any) -> HttpExpert:
    return HttpExpert(name="m", endpoint=upstream.url, upstream_model=model, **settings)


def test_an_answer_comes_as_the_endpoint_gave_it(upstream: FakeUpstream) -> None:
    answer = complete(expert(upstream, "ok"))
    assert answer["choices"][0]["message"]["content"] == TEXT
    assert answer["usage"] == USAGE


def test_the_key_is_read_from_the_environment_at_start(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = expert(upstream, "ok", api_key="${FAKE_KEY}")
    monkeypatch.setenv("FAKE_KEY", "k-123")
    complete(asked)
    assert upstream.requests[-1][0]["Authorization"] == "Bearer k-123"
    assert "k-123" not in repr(asked)
    monkeypatch.delenv("FAKE_KEY")
    with pytest.raises(InputError, match=r"api_key of model 'm': .* FAKE_KEY is not set"):
        complete(asked)


def test_references_inside_a_text_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_1", "x")
    assert expand("${A_1}-${A_1}-$A_1-${}", where="here") == "x-x-$A_1-${}"


def test_a_connection_is_used_again_after_an_answer_and_a_stream(upstream: FakeUpstream) -> None:
    async def run() -> int:
        asked = expert(upstream, "ok")
        await asked.start()
        assert asked._session is not None
        connector: Any = asked._session.connector
        for _ in range(3):
            await asked.complete(REQUEST)
            async for _chunk in asked.stream(REQUEST):
                pass
        pooled = sum(len(connections) for connections in connector._conns.values())
        await asked.close()
        return pooled

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_whole_call_ends_at_its_deadline(upstream: FakeUpstream, is_stream: bool) -> None:
    model = "trickle-10" if is_stream else "slow-30"  # an event every 0.2 s: never idle
    asked = expert(upstream, model, timeouts=Timeouts(total=0.5, idle=5))
    started = time.monotonic()
    with pytest.raises(ExpertError, match=r"within 0\.5 s") as late:
        read_stream(asked) if is_stream else complete(asked)
    assert late.value.status == 504
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_over_the_limit_is_refused(upstream: FakeUpstream, is_stream: bool) -> None:
    asked = expert(upstream, "ok", max_answer_bytes=50)
    with pytest.raises(ExpertError, match="of more than 50 bytes") as refused:
        read_stream(asked) if is_stream else complete(asked)
    assert refused.value.code == "upstream_invalid"


def test_errors_name_the_host_and_neither_path_nor_password(upstream: FakeUpstream) -> None:
    url = upstream.url.replace("http://", "http://user:pass@")
    asked = HttpExpert(name="m", endpoint=url, upstream_model="status-500")
    with pytest.raises(ExpertError) as failed:
        complete(asked)
    assert str(failed.value).startswith("model 'm' at 127.0.0.1:")
    assert "pass" not in str(failed.value)
    assert "\n" not in str(failed.value)


def test_cancelling_a_call_ends_it_at_the_endpoint() -> None:
    async def run() -> None:
        asked = expert(upstream, "slow-30")
        await asked.start()
        task = asyncio.create_task(asked.complete(REQUEST))
        while not upstream.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asked.close()

    with FakeUpstream() as upstream:
        asyncio.run(run())
        assert upstream.abandoned.wait(5)


@pytest.mark.parametrize("name", ["connect", "first_byte", "idle", "total"])
@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_is_a_positive_number(name: str, seconds: float) -> None:
    with pytest.raises(InputError, match=f"timeout {name}"):
        Timeouts(**{name: seconds})
