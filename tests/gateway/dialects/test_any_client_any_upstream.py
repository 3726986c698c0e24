"""Every client reaches every upstream through the whole gateway, over real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import openai
import pytest

from crossroads.core.http.timeouts import Timeouts
from crossroads.gateway.dialects import build_surfaces
from crossroads.gateway.extras import ApiExtras
from crossroads.gateway.upstreams import build_upstreams
from crossroads.prompts.pool import ModelCard
from tests.gateway.dialects.canned import CannedServer
from tests.gateway.serving import FakeRouter, gateway_of, serving

ASK = [{"role": "user", "content": "Hi"}]
TEXT = "Hello, world \u2603"
UPSTREAMS = ("chat", "anthropic", "responses", "completions")
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.fixture(scope="module")
def gateway_url(canned_url: str) -> Iterator[str]:
    """A gateway over the canned server, which stands in for endpoints of several APIs."""
    cards = []
    for name in ("text", "tools", "thinking"):
        known = {"upstream_model": name, "api_key": "upstream-key"}
        v1 = f"{canned_url}/v1"
        cards += [
            ModelCard(name=f"{name}-chat", endpoint=v1, speaks=("chat",), **known),
            ModelCard(name=f"{name}-responses", endpoint=v1, speaks=("chat", "responses"), **known),
            ModelCard(
                name=f"{name}-completions", endpoint=v1, speaks=("chat", "completions"), **known
            ),
            ModelCard(name=f"{name}-anthropic", endpoint=v1, api="anthropic", **known),
        ]
    timeouts = Timeouts(connect=1, first_byte=5, idle=5, total=10)
    router = FakeRouter("text-chat", "text-anthropic")
    gateway = gateway_of(build_upstreams(cards, timeouts=timeouts), router)
    surfaces = build_surfaces()
    services = gateway.services
    services.surfaces, services.prepare = surfaces.by_path, surfaces.responses.prepare
    services.extras = ApiExtras(surfaces, body_limit=services.body_limit)
    with serving(gateway) as url:
        yield url


@pytest.fixture(scope="module")
def ours(gateway_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(gateway_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_client_of_chat(ours: openai.OpenAI, upstream: str) -> None:
    ask = {"model": f"text-{upstream}", "messages": ASK}
    answer = ours.chat.completions.create(**ask)
    assert answer.choices[0].message.content == TEXT and answer.model == f"text-{upstream}"
    assert answer.usage is not None and answer.usage.prompt_tokens == 12
    options = {"include_usage": True}
    chunks = list(ours.chat.completions.create(**ask, stream=True, stream_options=options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == 12


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_of_messages(theirs: anthropic.Anthropic, upstream: str, is_stream: bool) -> None:
    for name, kinds in (("text", ["text"]), ("tools", ["text", "tool_use", "tool_use"])):
        ask = {
            "model": f"{name}-{upstream}",
            "max_tokens": 50,
            "messages": ASK,
            "tools": [{"name": "weather", "input_schema": TOOL}],
        }
        if is_stream:
            with theirs.messages.stream(**ask) as stream:
                message = stream.get_final_message()
        else:
            message = theirs.messages.create(**ask)
        assert [block.type for block in message.content] == kinds
        assert message.model == f"{name}-{upstream}"
        assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (8, 4)
        if name == "tools":
            assert message.content[-1].input == {"city": "Rome"}


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_of_responses(ours: openai.OpenAI, upstream: str, is_stream: bool) -> None:
    ask = {"model": f"thinking-{upstream}", "input": "Hi"}
    if is_stream:
        with ours.responses.stream(**ask) as stream:
            response = stream.get_final_response()
    else:
        response = ours.responses.create(**ask)
    assert response.output_text == "4" and response.status == "completed"
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.model == f"thinking-{upstream}"


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_conversation_goes_on_with_another_upstream(
    ours: openai.OpenAI, canned: CannedServer, upstream: str
) -> None:
    first = ours.responses.create(model="tools-chat", input="Hi")
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "sun"}
        for item in first.output
        if item.type == "function_call"
    ]
    second = ours.responses.create(
        model=f"text-{upstream}", input=results, previous_response_id=first.id
    )
    assert second.output_text == TEXT and second.previous_response_id == first.id
    seen = canned.calls[-1].body["messages"]
    assert [message["role"] for message in seen] == ["user", "assistant", "tool", "tool"]
    assert ours.responses.retrieve(second.id).output_text == TEXT


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_client_of_completions(ours: openai.OpenAI, upstream: str) -> None:
    answer = ours.completions.create(model=f"text-{upstream}", prompt="Hi")
    assert answer.choices[0].text == TEXT and answer.model == f"text-{upstream}"
    stream = ours.completions.create(model=f"text-{upstream}", prompt="Hi", stream=True)
    assert "".join(c.choices[0].text for c in stream if c.choices) == TEXT


def test_the_gateways_own_fields_are_not_forwarded(
    ours: openai.OpenAI, theirs: anthropic.Anthropic, canned: CannedServer
) -> None:
    own = {"crossroads": {"session": "s"}}
    for upstream in UPSTREAMS:
        ours.responses.create(model=f"text-{upstream}", input="Hi", extra_body=own)
        assert "crossroads" not in canned.calls[-1].body
        theirs.messages.create(
            model=f"text-{upstream}",
            max_tokens=9,
            messages=ASK,
            extra_body=own,
        )
        assert "crossroads" not in canned.calls[-1].body


@pytest.mark.parametrize("model", ["cut-3", "half", "malformed-2", "midway"])
def test_a_stream_that_broke_looks_whole_to_no_client(url: str, model: str) -> None:
    with (
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
        client.messages.stream(model=model, max_tokens=9, messages=ASK) as stream,
        pytest.raises(anthropic.APIError),
    ):
        stream.get_final_message()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        events = list(client.responses.create(model=model, input="Hi", stream=True))
        kinds = {event.type for event in events}
        assert events[-1].type == "response.failed" and "response.completed" not in kinds
        with pytest.raises(openai.APIError):
            list(client.completions.create(model=model, prompt="Hi", stream=True))
