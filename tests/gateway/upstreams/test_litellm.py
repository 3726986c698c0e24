"""LiteLLM's library as an upstream. The library is a stand-in here: it need not be installed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import pytest

from crossroads.core.errors import MissingExtraError
from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams import build_upstream
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.pool import ModelCard
from tests.core.http.servers import SHORT
from tests.gateway.upstreams.chats import HELLO


class Model:
    """Stands in for the pydantic models the library answers with."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def model_dump(self, *, exclude_unset: bool) -> dict[str, Any]:
        assert exclude_unset
        return self.fields


class RateLimited(Exception):  # noqa: N818 - as the library names its own
    status_code = 429
    code = "slow_down"


class StandIn(ModuleType):
    """Stands in for the module ``litellm``."""

    def __init__(self) -> None:
        super().__init__("litellm")
        self.asked: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.chunks: list[dict[str, Any]] = []
        self.was_closed = False

    async def acompletion(self, **fields: Any) -> Any:
        self.asked.append(fields)
        if self.error is not None:
            raise self.error
        if fields.get("stream"):
            return self._stream()
        message = {"role": "assistant", "content": "hi"}
        return Model(id="c", choices=[{"index": 0, "message": message, "finish_reason": "stop"}])

    async def _stream(self) -> AsyncIterator[Model]:
        try:
            for chunk in self.chunks:
                yield Model(**chunk)
        finally:
            self.was_closed = True


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "c", "choices": [choice]}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "litellm", stand_in)
    monkeypatch.setenv("PROVIDER_KEY", "provider-secret")
    return stand_in


def card(**fields: Any) -> ModelCard:
    given = {"name": "m", "api": "litellm", "api_key": "${PROVIDER_KEY}", **fields}
    return ModelCard.model_validate(given)


def order(**fields: Any) -> Order:
    return Order(dialect="chat", body={**HELLO, **fields})


def test_without_the_library_the_start_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "litellm", None)  # as if it were not installed
    upstream = build_upstream(card(), timeouts=SHORT)
    with pytest.raises(MissingExtraError, match=r"pip install 'crossroads\[litellm\]'"):
        asyncio.run(upstream.start())


def test_building_it_does_not_import_the_library(library: StandIn) -> None:
    del sys.modules["litellm"]
    build_upstream(card(), timeouts=SHORT)
    assert "litellm" not in sys.modules


def test_a_whole_answer_comes_back_as_plain_data(library: StandIn) -> None:
    async def check() -> None:
        upstream = build_upstream(
            card(upstream_model="groq/x", endpoint="http://h/v1", headers={"x-a": "b"}),
            timeouts=SHORT,
        )
        await upstream.start()
        answer = await upstream.complete(order(temperature=0, stream=True))
        assert answer["choices"][0]["message"]["content"] == "hi"
        assert library.asked == [
            {
                "model": "groq/x",
                "messages": HELLO["messages"],
                "temperature": 0,
                "api_base": "http://h/v1",
                "api_key": "provider-secret",
                "extra_headers": {"x-a": "b"},
                "num_retries": 0,
            }
        ]
        await upstream.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("chunks", "code"),
    [
        ([chunk("a"), chunk("b", "stop")], None),
        ([chunk("a")], "upstream_cut"),
        ([], "upstream_empty"),
        ([chunk("a"), {"x": 1}], "upstream_invalid"),
    ],
)
def test_a_stream_is_checked_like_any_other(
    library: StandIn, chunks: list[dict[str, Any]], code: str | None
) -> None:
    library.chunks = chunks

    async def check() -> None:
        upstream = build_upstream(card(), timeouts=SHORT)
        await upstream.start()
        error = None
        try:
            got = [event async for batch in upstream.stream(order()) for event in batch]
            assert got == chunks
        except ExpertError as raised:
            error = raised
        assert (error and error.code) == code
        assert library.asked[0]["stream_options"] == {"include_usage": True}
        assert library.was_closed

    asyncio.run(check())


def test_its_exceptions_become_the_gateways_errors(library: StandIn) -> None:
    async def check() -> None:
        upstream = build_upstream(card(), timeouts=SHORT)
        await upstream.start()
        for raised, status, code in (
            (RateLimited("slow down, provider-secret"), 429, "slow_down"),
            (ConnectionError("nobody"), 503, "upstream_unavailable"),
            (TimeoutError(), 504, "upstream_timeout"),
        ):
            library.error = raised
            with pytest.raises(ExpertError) as failed:
                await upstream.complete(order())
            assert (failed.value.status, failed.value.code) == (status, code)
            assert "secret" not in str(failed.value)

    asyncio.run(check())


def test_a_client_chooses_neither_host_nor_key_nor_settings_of_the_library(
    library: StandIn,
) -> None:
    hostile = {
        "api_base": "http://169.254.169.254",
        "base_url": "http://169.254.169.254",
        "api_key": "theirs",
        "custom_llm_provider": "openai",
        "extra_headers": {"x-a": "b"},
        "fallbacks": ["gpt-x"],
        "mock_response": "made up",
        "num_retries": 9,
    }

    async def check() -> None:
        upstream = build_upstream(card(), timeouts=SHORT)
        await upstream.start()
        await upstream.complete(order(**hostile, temperature=0))
        assert library.asked == [
            {
                "messages": HELLO["messages"],
                "temperature": 0,
                "model": "m",
                "api_key": "provider-secret",
                "num_retries": 0,
            }
        ]

    asyncio.run(check())


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
        {"type": "image_url", "image_url": "HTTPS://h/a.png"},
        {"type": "file", "file": {"file_id": "gs://bucket/a.pdf"}},
        {"type": "video_url", "video_url": {"sources": ["ftp://h/a"]}},
    ],
)
def test_the_library_is_given_nothing_to_fetch(library: StandIn, part: dict[str, Any]) -> None:
    async def ask(parts: list[dict[str, Any]]) -> None:
        upstream = build_upstream(card(), timeouts=SHORT)
        await upstream.start()
        await upstream.complete(order(messages=[{"role": "user", "content": parts}]))

    with pytest.raises(ExpertError, match="data: URL") as refused:
        asyncio.run(ask([{"type": "text", "text": "see"}, part]))
    assert (refused.value.status, refused.value.code) == (400, "remote_file")
    assert library.asked == []
    data = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asyncio.run(ask([{"type": "text", "text": "see http://h/a"}, data]))
    assert len(library.asked) == 1
