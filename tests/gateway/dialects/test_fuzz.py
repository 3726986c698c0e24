"""Whatever JSON comes in: a call, or an ``ApiError`` that names what is wrong."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.gateway.call import ANYBODY
from crossroads.gateway.dialects import build_surfaces, to_messages_request
from crossroads.gateway.errors import ApiError
from crossroads.prompts.experts.base import ExpertError

SURFACES = build_surfaces().by_path
FIELDS = [
    *("model", "messages", "stream", "input", "prompt", "tools", "tool_choice", "system", "stop"),
    *("max_tokens", "instructions", "text", "reasoning", "metadata", "crossroads", "user", "n"),
    *("stream_options", "output_config", "stop_sequences", "store", "previous_response_id"),
    *("logprobs", "include", "response_format", "parallel_tool_calls", "temperature"),
]
INNER = [
    *("role", "content", "type", "text", "source", "image_url", "url", "file", "input", "id"),
    *("name", "tool_calls", "function", "arguments", "call_id", "output", "format", "tags"),
    *("tool_use_id", "thinking_blocks", "refusal", "data", "media_type", "file_data", "title"),
]
WORDS = [
    *("user", "assistant", "system", "tool", "developer", "text", "image", "image_url", "file"),
    *("tool_use", "tool_result", "thinking", "document", "input_text", "input_image", "message"),
    *("function", "function_call", "function_call_output", "reasoning", "json_schema", "base64"),
    *("refusal", "auto", "any", "item_reference", "data:a/b;base64,AA", "input_file", "{}", ""),
]
scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | st.sampled_from(WORDS) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(INNER) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=14,
)
message = st.dictionaries(st.sampled_from(INNER), values, max_size=5).map(
    lambda fields: {"role": "user", **fields}
)
requests = st.fixed_dictionaries(
    {"model": st.just("m") | values},
    optional={
        **{name: values for name in FIELDS if name != "model"},
        "messages": st.lists(message, max_size=3) | values,
        "input": st.lists(message, max_size=3) | values,
    },
)


@pytest.mark.parametrize("path", sorted(SURFACES))
@settings(max_examples=40)
@given(body=requests)
def test_any_json_is_a_call_or_an_api_error(path: str, body: dict[str, Any]) -> None:
    surface = SURFACES[path]
    with suppress(ApiError):
        call = surface.parse(orjson.dumps(body), client=ANYBODY, headers={})
        # What reads a parsed call must not stumble over it either.
        for name in ("text", "input_tokens", "max_output_tokens", "inputs", "has_tools"):
            getattr(call, name)
        for name in ("metadata", "tags", "session", "conversation_text"):
            getattr(call, name)
        orjson.dumps(call.body)


@pytest.mark.parametrize("path", sorted(SURFACES))
@settings(max_examples=40)
@given(raw=st.binary(max_size=60))
def test_any_bytes_are_an_api_error(path: str, raw: bytes) -> None:
    with pytest.raises(ApiError):
        SURFACES[path].parse(raw, client=ANYBODY, headers={})


@settings(max_examples=40)
@given(body=requests)
def test_any_chat_request_becomes_a_messages_request_or_an_api_error(body: dict[str, Any]) -> None:
    with suppress(ApiError):
        translated = to_messages_request(body)
        assert isinstance(translated["messages"], list)


SMALLEST: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/completions": {"prompt": "x", "echo": True},
    "/messages": {"messages": [{"role": "user", "content": "x"}]},
    "/responses": {"input": "x"},
}
delta = st.dictionaries(
    st.sampled_from(
        [*("role", "content", "tool_calls", "reasoning_content", "refusal", "thinking_blocks")]
    ),
    values,
    max_size=4,
)
choice = st.fixed_dictionaries(
    {},
    optional={
        "index": st.just(0) | values,
        "delta": delta | values,
        "message": delta | values,
        "finish_reason": st.sampled_from(["stop", "length", None]) | values,
        "logprobs": values,
    },
)
answers = st.fixed_dictionaries(
    {"choices": st.lists(choice, max_size=2) | values},
    optional={"id": values, "usage": values, "created": values},
)


@pytest.mark.parametrize("path", sorted(SMALLEST))
@settings(max_examples=40)
@given(events=st.lists(answers, max_size=3))
def test_any_answer_is_written_or_the_upstreams_failure(
    path: str, events: list[dict[str, Any]]
) -> None:
    surface = SURFACES[path]
    asked = {"model": "m", "stream_options": {"include_usage": True}, **SMALLEST[path]}
    call = surface.parse(orjson.dumps(asked), client=ANYBODY, headers={})
    for answer in events:
        with suppress(ExpertError):
            orjson.loads(surface.render(call, "m", "chat", answer))
    writer = surface.writer(call, "m", "chat")
    try:
        written = writer.feed(events) + writer.end()
    except ExpertError:
        written = writer.fail(ApiError("cut", status=502))
    assert written.endswith(b"\n\n")


@pytest.mark.parametrize("path", sorted(SURFACES))
def test_json_nested_too_deeply_is_an_api_error(path: str) -> None:
    deep = b'{"model":"m","messages":' + b"[" * 100_000
    with pytest.raises(ApiError, match="not valid JSON"):
        SURFACES[path].parse(deep, client=ANYBODY, headers={})


def test_a_tool_input_too_deep_to_write_is_an_api_error() -> None:
    nested = b'{"a":' * 300 + b"1" + b"}" * 300
    block = b'{"type":"tool_use","id":"t","name":"f","input":' + nested + b"}"
    raw = b'{"model":"m","messages":[{"role":"assistant","content":[' + block + b"]}]}"
    with pytest.raises(ApiError, match="nested"):
        SURFACES["/messages"].parse(raw, client=ANYBODY, headers={})
