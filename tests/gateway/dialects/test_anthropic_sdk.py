"""Anthropic's own client reads what the surface writes, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest

from tests.gateway.dialects.canned import CannedServer

ASK = {"max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
TEXT = "Hello, world \u2603"


@pytest.fixture(scope="module")
def client(canned_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=canned_url, api_key="none", max_retries=0) as client:
        yield client


def message(client: anthropic.Anthropic, model: str, is_stream: bool) -> anthropic.types.Message:
    if not is_stream:
        return client.messages.create(model=model, **ASK)
    with client.messages.stream(model=model, **ASK) as stream:
        return stream.get_final_message()


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_message_has_text_and_token_counts(client: anthropic.Anthropic, is_stream: bool) -> None:
    answer = message(client, "text", is_stream)
    assert answer.id.startswith("msg_") and answer.model == "text"
    assert [block.text for block in answer.content if block.type == "text"] == [TEXT]
    assert answer.stop_reason == "end_turn"
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (8, 4, 5)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_message_has_tool_calls(client: anthropic.Anthropic, is_stream: bool) -> None:
    answer = message(client, "tools", is_stream)
    assert [block.type for block in answer.content] == ["text", "tool_use", "tool_use"]
    last = answer.content[-1]
    assert last.type == "tool_use"
    assert (last.id, last.name, last.input) == ("call_Rome", "weather", {"city": "Rome"})
    assert answer.stop_reason == "tool_use"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_message_has_thoughts_before_its_text(
    client: anthropic.Anthropic, is_stream: bool
) -> None:
    thought, text = message(client, "thinking", is_stream).content
    assert thought.type == "thinking" and thought.thinking == "2 and 2"
    assert text.type == "text" and text.text == "4"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("model", "reason"), [("length", "max_tokens"), ("filtered", "refusal")])
def test_a_message_says_why_it_ended(
    client: anthropic.Anthropic, model: str, reason: str, is_stream: bool
) -> None:
    assert message(client, model, is_stream).stop_reason == reason


def test_the_helper_gives_texts_as_they_come(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="text", **ASK) as stream:
        texts = list(stream.text_stream)
    assert len(texts) > 1 and "".join(texts) == TEXT


def test_a_cut_message_raises(client: anthropic.Anthropic) -> None:
    with (
        client.messages.stream(model="cut-3", **ASK) as stream,
        pytest.raises(anthropic.APIStatusError, match="cut off"),
    ):
        stream.get_final_message()


def test_the_request_reaches_upstreams_as_it_was_sent(
    client: anthropic.Anthropic, canned: CannedServer
) -> None:
    client.messages.create(model="text", system="Be kind.", extra_body={"top_k": 5}, **ASK)
    call = canned.calls[-1]
    assert call.native == {"model": "text", "system": "Be kind.", "top_k": 5, **ASK}
    assert call.body["messages"][0] == {"role": "system", "content": "Be kind."}


def test_tokens_are_estimated_and_labelled_so(client: anthropic.Anthropic) -> None:
    long = [{"role": "user", "content": "word " * 400}]
    counted = client.messages.count_tokens(model="text", messages=long)
    assert 450 < counted.input_tokens < 550
    assert counted.to_dict()["is_estimate"] is True


@pytest.mark.parametrize(
    ("model", "expected", "kind"),
    [
        ("error-400", anthropic.BadRequestError, "invalid_request_error"),
        ("error-401", anthropic.AuthenticationError, "authentication_error"),
        ("error-403", anthropic.PermissionDeniedError, "permission_error"),
        ("error-404", anthropic.NotFoundError, "not_found_error"),
        ("error-413", anthropic.RequestTooLargeError, "request_too_large"),
        ("error-429", anthropic.RateLimitError, "rate_limit_error"),
        ("error-500", anthropic.InternalServerError, "api_error"),
        ("error-503", anthropic.InternalServerError, "overloaded_error"),
    ],
)
def test_errors_are_the_clients_own(
    client: anthropic.Anthropic, model: str, expected: type[anthropic.APIStatusError], kind: str
) -> None:
    with pytest.raises(expected) as raised:
        client.messages.create(model=model, **ASK)
    body = raised.value.body
    assert isinstance(body, dict)
    assert body["type"] == "error" and body["error"]["type"] == kind
    assert body["request_id"] == "req_1"
    assert raised.value.status_code == (529 if model == "error-503" else int(model[-3:]))
