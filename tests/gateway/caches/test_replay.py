"""A whole gateway with a cache, asked by the official SDKs on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from crossroads.gateway.caches import CacheSettings, build_cache
from crossroads.prompts.experts.base import Completion, Request, completion, usage_of
from crossroads.prompts.experts.tools import ToolExpert
from tests.gateway.serving import as_upstream, gateway_of, serving

TEXT = "Paris, on the Seine \u2014 since long ago."


class Counting(ToolExpert):
    """Answers the same, and counts how often it is asked."""

    asked = 0

    async def complete(self, request: Request) -> Completion:
        Counting.asked += 1
        return completion(TEXT, model=self.name, usage=usage_of(12, 7))


@pytest.fixture
def url() -> Iterator[str]:
    Counting.asked = 0
    cache = build_cache(
        CacheSettings.model_validate({"exact": True, "semantic": {"threshold": 0.8}})
    )
    expert = Counting(name="paid", answer=str, refusal="")
    with serving(gateway_of({"paid": as_upstream(expert)}, cache=cache)) as running:
        yield running


def chat(url: str, text: str = "Capital of France?", **fields: Any) -> tuple[str, str | None]:
    """Ask; return the answer's text and what the cache said."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="paid", messages=[{"role": "user", "content": text}], **fields
        )
        return raw.parse().choices[0].message.content or "", raw.headers.get("x-crossroads-cache")


def streamed(url: str, text: str = "Capital of France?") -> tuple[str, list[Any]]:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
        client.chat.completions.create(
            model="paid",
            messages=[{"role": "user", "content": text}],
            stream=True,
            stream_options={"include_usage": True},
        ) as stream,
    ):
        chunks = list(stream)
    said = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    return "".join(said), chunks


def test_a_hit_answers_a_whole_request_without_the_upstream(url: str) -> None:
    assert chat(url) == (TEXT, None)
    assert chat(url) == (TEXT, "exact")
    assert Counting.asked == 1


@pytest.mark.parametrize("is_first_streamed", [True, False])
def test_a_hit_replays_a_correct_stream(url: str, is_first_streamed: bool) -> None:
    first = streamed(url)[0] if is_first_streamed else chat(url)[0]
    assert first == TEXT
    text, chunks = streamed(url)
    assert Counting.asked == 1
    assert text == TEXT
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {"paid"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 19


def test_a_stream_fills_the_cache_for_whole_requests(url: str) -> None:
    assert streamed(url)[0] == TEXT
    assert chat(url) == (TEXT, "exact")


def test_a_hit_is_written_in_the_dialect_that_asks(url: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client:
        asked: Any = {
            "model": "paid",
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "Capital of France?"}],
        }
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            said = "".join(stream.text_stream)
            final = stream.get_final_message()
    assert Counting.asked == 1
    assert [block.type for block in whole.content] == ["text"]
    assert said == TEXT
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 7)


def test_another_wording_is_said_to_be_one(url: str) -> None:
    chat(url, "Please tell me: what is the capital of France?")
    text, cache = chat(url, "please tell me: what is the capital of France")
    assert (text, cache) == (TEXT, "semantic")


def test_a_client_can_ask_anew(url: str) -> None:
    chat(url)
    assert chat(url, extra_headers={"cache-control": "no-cache"}) == (TEXT, None)
    assert Counting.asked == 2
