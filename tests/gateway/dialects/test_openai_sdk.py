"""OpenAI's own client reads what the surfaces write, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from pydantic import BaseModel

from tests.gateway.dialects.canned import CannedServer

MESSAGES = [{"role": "user", "content": "Hi"}]
TEXT = "Hello, world \u2603"


class City(BaseModel):
    city: str
    people: int


@pytest.fixture(scope="module")
def client(canned_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{canned_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_names_who_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="text", messages=MESSAGES)
    assert answer.model == "text"
    assert answer.choices[0].message.content == TEXT
    assert answer.usage is not None and answer.usage.total_tokens == 17


def test_a_chat_stream_has_token_counts_only_where_asked_for(client: openai.OpenAI) -> None:
    plain = list(client.chat.completions.create(model="text", messages=MESSAGES, stream=True))
    asked = list(
        client.chat.completions.create(
            model="text", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    for chunks in (plain, asked):
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == TEXT
        assert {chunk.id for chunk in chunks} == {"chatcmpl-1"}
        assert {chunk.model for chunk in chunks} == {"text"}
    assert all(chunk.usage is None for chunk in plain) and all(c.choices for c in plain)
    assert asked[-1].choices == [] and asked[-1].usage is not None
    assert asked[-1].usage.prompt_tokens == 12
    assert all(chunk.usage is None for chunk in asked[:-1])


def test_the_chat_helper_joins_parallel_tool_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tools", messages=MESSAGES) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [call.id for call in calls] == ["call_Paris", "call_Rome"]
    assert calls[1].function.arguments == '{"city":"Rome"}'
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_cut_chat_stream_raises(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="cut-3", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="cut off"):
        list(stream)


def test_completions_work_over_chat(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="text", prompt="Hi", echo=True)
    assert answer.object == "text_completion" and answer.choices[0].text == f"Hi{TEXT}"
    stream = client.completions.create(
        model="text", prompt=["Hi"], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 5


def test_embeddings_arrive_as_numbers_whatever_the_encoding(client: openai.OpenAI) -> None:
    for encoding in ("float", "base64"):
        answer = client.embeddings.create(model="text", input="Hi", encoding_format=encoding)
        assert answer.model == "text"
    assert client.embeddings.create(model="m", input="Hi").data[0].embedding == [0.5, -1.0]


def test_a_response_has_text_and_token_counts(client: openai.OpenAI) -> None:
    response = client.responses.create(model="text", input="Hi", instructions="Be kind.")
    assert response.output_text == TEXT and response.status == "completed"
    assert response.instructions == "Be kind." and response.model == "text"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (12, 5)
    assert response.usage.input_tokens_details.cached_tokens == 4


def test_the_responses_helper_follows_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="text", input="Hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == TEXT
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"


def test_the_responses_helper_parses_structured_output(client: openai.OpenAI) -> None:
    with client.responses.stream(model="json", input="Hi", text_format=City) as stream:
        assert stream.get_final_response().output_parsed == City(city="Paris", people=3)
    parsed = client.responses.parse(model="json", input="Hi", text_format=City)
    assert parsed.output_parsed == City(city="Paris", people=3)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_response_has_function_calls(client: openai.OpenAI, is_stream: bool) -> None:
    if is_stream:
        with client.responses.stream(model="tools", input="Hi") as stream:
            response = stream.get_final_response()
    else:
        response = client.responses.create(model="tools", input="Hi")
    kinds = [item.type for item in response.output]
    assert kinds == ["message", "function_call", "function_call"]
    last = response.output[-1]
    assert last.type == "function_call"
    assert (last.call_id, last.name, last.arguments) == (
        *("call_Rome", "weather", '{"city":"Rome"}'),
    )


def test_a_response_has_thoughts(client: openai.OpenAI) -> None:
    with client.responses.stream(model="thinking", input="Hi") as stream:
        streamed = stream.get_final_response()
    for response in (streamed, client.responses.create(model="thinking", input="Hi")):
        thought = response.output[0]
        assert thought.type == "reasoning" and thought.content is not None
        assert thought.content[0].text == "2 and 2"
        assert response.output_text == "4"


def test_a_response_cut_by_the_bound_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model="length", input="Hi", max_output_tokens=16)
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="length", input="Hi", stream=True))
    assert events[-1].type == "response.incomplete"


def test_a_cut_response_stream_ends_with_error_and_failure(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="cut-3", input="Hi", stream=True))
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    failed = events[-1]
    assert failed.type == "response.failed" and failed.response.status == "failed"
    assert failed.response.error is not None and failed.response.error.message == "cut off"


def test_a_conversation_goes_on_by_the_id_of_its_last_response(
    client: openai.OpenAI, canned: CannedServer
) -> None:
    first = client.responses.create(model="text", input="Hi")
    second = client.responses.create(model="text", input="And?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    third = client.responses.create(model="text", input="So?", previous_response_id=second.id)
    assert third.output_text == TEXT
    told = [(m["role"], m["content"]) for m in canned.calls[-1].body["messages"]]
    assert told == [
        *(("user", "Hi"), ("assistant", TEXT), ("user", "And?"), ("assistant", TEXT)),
        ("user", "So?"),
    ]
    listed = client.responses.input_items.list(third.id, order="asc")
    assert len(listed.data) == 5


def test_stored_responses_are_fetched_and_deleted(client: openai.OpenAI) -> None:
    response = client.responses.create(model="text", input="Hi")
    assert client.responses.retrieve(response.id).output_text == TEXT
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(response.id)
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError, match="not found"):
        client.responses.create(model="text", input="Hi", previous_response_id=response.id)


def test_a_streamed_response_is_stored_unless_forbidden(client: openai.OpenAI) -> None:
    with client.responses.stream(model="text", input="Hi") as stream:
        kept = stream.get_final_response()
    assert client.responses.retrieve(kept.id).output_text == TEXT
    with client.responses.stream(model="text", input="Hi", store=False) as stream:
        forgotten = stream.get_final_response()
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(forgotten.id)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("error-400", openai.BadRequestError),
        ("error-401", openai.AuthenticationError),
        ("error-403", openai.PermissionDeniedError),
        ("error-404", openai.NotFoundError),
        ("error-429", openai.RateLimitError),
        ("error-500", openai.InternalServerError),
        ("error-503", openai.InternalServerError),
    ],
)
def test_errors_are_the_clients_own(
    client: openai.OpenAI, model: str, expected: type[openai.APIStatusError]
) -> None:
    with pytest.raises(expected) as chat:
        client.chat.completions.create(model=model, messages=MESSAGES)
    with pytest.raises(expected):
        client.responses.create(model=model, input="Hi")
    assert chat.value.request_id == "req_1"
