from __future__ import annotations

from typing import Any

import pytest

from crossroads.gateway.dialects.responses_request import from_responses_request, input_items
from crossroads.gateway.errors import ApiError


def chat(given: Any = "Hi", **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "input": given, **fields}
    return from_responses_request(body, input_items(body))


def messages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = chat(list(items))["messages"]
    return result


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({"max_output_tokens": 5}, "max_tokens", 5),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, "reasoning_effort", "low"),
        ({"text": {"verbosity": "low"}}, "verbosity", "low"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}}}},
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
        ),
        (
            {"text": {"format": {"type": "json_object"}}},
            *("response_format", {"type": "json_object"}),
        ),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}]},
            "tools",
            [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}],
        ),
        (
            {"tool_choice": {"type": "function", "name": "f"}},
            *("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ),
        ({"tool_choice": "required"}, "tool_choice", "required"),
        ({"top_logprobs": 3}, "logprobs", True),
        ({"include": ["message.output_text.logprobs"]}, "logprobs", True),
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"metadata": {"a": "b"}}, "metadata", {"a": "b"}),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", False),
        ({"unheard_of": 1}, "unheard_of", 1),
    ],
)
def test_parameters_have_counterparts(given: Any, name: str, expected: Any) -> None:
    assert chat(**given)[name] == expected


def test_what_only_this_api_knows_is_left_out() -> None:
    given = chat(store=True, truncation="auto", include=[], stream_options={}, text={})
    assert given == {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def test_instructions_come_first() -> None:
    assert chat(instructions="Be kind.")["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]


def test_items_become_messages_and_calls_side_by_side_one_message() -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    given = messages(
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "?"}]},
        {**call, "call_id": "a"},
        {**call, "call_id": "b"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": []},
    )
    function = {"name": "f", "arguments": "{}"}
    assert given == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "?",
            "tool_calls": [{"id": i, "type": "function", "function": function} for i in "ab"],
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": []},
    ]


def test_images_and_files_become_parts() -> None:
    parts = [
        {"type": "input_image", "image_url": "https://a/b.png", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,A"},
        {"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}},
    ]
    assert messages({"role": "user", "content": parts})[0]["content"] == [
        {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}},
        {
            "type": "file",
            "file": {"file_data": "data:application/pdf;base64,A", "filename": "a.pdf"},
        },
        parts[2],
    ]


def test_items_and_tools_without_counterpart_are_left_for_the_upstream_to_refuse() -> None:
    search = {"type": "web_search_call", "id": "ws_1"}
    assert messages({"role": "user", "content": "x"}, search)[1] == search
    assert chat(tools=[{"type": "web_search"}])["tools"] == [{"type": "web_search"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"instructions": 5}, "instructions"),
        ({"text": 5}, "text"),
        ({"reasoning": "high"}, "reasoning"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ],
)
def test_what_cannot_be_asked_is_refused(fields: Any, param: str) -> None:
    body = {"model": "m", "input": "Hi", **fields}
    with pytest.raises(ApiError) as raised:
        from_responses_request(body, input_items(body))
    assert (raised.value.status, raised.value.param) == (400, param)
