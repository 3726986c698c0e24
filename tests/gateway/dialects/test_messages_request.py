from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given

from crossroads.gateway.dialects import from_messages_request, to_messages_request
from crossroads.gateway.errors import ApiError
from tests.gateway.dialects import strategies as own

USER = {"role": "user", "content": "Hi"}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}


def to(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return to_messages_request({"model": "m", "messages": list(messages or (USER,)), **fields})


def back(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return from_messages_request(
        {"model": "m", "max_tokens": 9, "messages": list(messages or (USER,)), **fields}
    )


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


# --- chat -> messages ----------------------------------------------------------------------------


def test_system_messages_go_to_the_top() -> None:
    request = to(
        {"role": "system", "content": "one"}, {"role": "developer", "content": "two"}, USER
    )
    assert request["system"] == [text("one"), text("two")]
    assert request["messages"] == [{"role": "user", "content": [text("Hi")]}]


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({}, "max_tokens", 4096),
        ({"max_tokens": 7}, "max_tokens", 7),
        ({"max_tokens": 7, "max_completion_tokens": 8}, "max_tokens", 8),
        ({"stop": "a"}, "stop_sequences", ["a"]),
        ({"stop": ["a", "b"]}, "stop_sequences", ["a", "b"]),
        ({"temperature": 1.5}, "temperature", 1),
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"stream": True}, "stream", True),
        ({"user": "u"}, "metadata", {"user_id": "u"}),
        ({"metadata": {"user_id": "v", "x": "y"}, "user": "u"}, "metadata", {"user_id": "v"}),
        ({"reasoning_effort": "minimal"}, "output_config", {"effort": "low"}),
        ({"thinking": {"type": "adaptive"}}, "thinking", {"type": "adaptive"}),
        ({"tool_choice": "required"}, "tool_choice", {"type": "any"}),
        ({"tool_choice": "none"}, "tool_choice", {"type": "none"}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            *("tool_choice", {"type": "tool", "name": "f"}),
        ),
        (
            {"tools": [TOOL], "parallel_tool_calls": False},
            *("tool_choice", {"type": "auto", "disable_parallel_tool_use": True}),
        ),
        (
            {"tools": [TOOL]},
            *("tools", [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}},
            *("output_config", {"format": {"type": "json_schema", "schema": {"a": 1}}}),
        ),
    ],
)
def test_parameters_have_counterparts(given: Any, name: str, expected: Any) -> None:
    assert to(**given)[name] == expected


def test_what_has_no_counterpart_is_left_out_and_the_rest_passes() -> None:
    request = to(
        seed=1, logit_bias={}, stream_options={}, crossroads={}, routing_preferences=[], top_k=3
    )
    assert request.keys() == {"model", "messages", "max_tokens", "top_k"}


def test_tool_results_side_by_side_become_one_turn() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    other = {"id": "b", "type": "function", "function": {"name": "f", "arguments": ""}}
    request = to(
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call, other]},
        {"role": "tool", "tool_call_id": "a", "content": "one"},
        {"role": "tool", "tool_call_id": "b", "content": [text("two")]},
        {"role": "user", "content": "and?"},
    )
    assert request["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "b", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "one"},
                {"type": "tool_result", "tool_use_id": "b", "content": [text("two")]},
                text("and?"),
            ],
        },
    ]


def test_images_and_files_become_sources() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
        {
            "type": "file",
            "file": {"file_data": "data:application/pdf;base64,BB", "filename": "x.pdf"},
        },
        {"type": "text", "text": "look", "cache_control": {"type": "ephemeral"}},
    ]
    content = to({"role": "user", "content": parts})["messages"][0]["content"]
    assert content == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "BB"},
            "title": "x.pdf",
        },
        {"type": "text", "text": "look", "cache_control": {"type": "ephemeral"}},
    ]


def test_signed_thinking_goes_back_as_it_came() -> None:
    block = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    message = {"role": "assistant", "content": "4", "reasoning_content": "hm"}
    request = to(USER, {**message, "thinking_blocks": [block]})
    assert request["messages"][1]["content"] == [block, text("4")]
    unsigned = to(USER, message)
    assert unsigned["messages"][1]["content"] == [text("4")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("So far \n", [text("So far")]),
        ([text("So "), text(" ")], [text("So")]),
        (" ", None),
    ],
)
def test_an_answer_to_be_continued_ends_without_white_space(content: Any, expected: Any) -> None:
    turns = to(USER, {"role": "assistant", "content": content})["messages"][1:]
    assert turns == ([] if expected is None else [{"role": "assistant", "content": expected}])
    middle = to(USER, {"role": "assistant", "content": "a "}, USER)["messages"][1]
    assert middle["content"] == [text("a ")]


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([USER], {"n": 2}, "n"),
        ([USER], {"functions": [{"name": "f"}]}, "functions"),
        ([{"role": "wizard", "content": "x"}], {}, "messages[0].role"),
        ([{"role": "user", "content": 5}], {}, "messages[0].content"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], {}, "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "data:x"}]}],
            *({}, "messages[0].content[0]"),
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}],
            *({}, "messages[0].tool_calls[0].arguments"),
        ),
        ([USER], {"tool_choice": "sometimes"}, "tool_choice"),
        ([USER], {"tools": [1]}, "tools[0]"),
    ],
)
def test_what_cannot_be_asked_is_refused(messages: Any, fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as raised:
        to(*messages, **fields)
    assert (raised.value.status, raised.value.param) == (400, param)


# --- messages -> chat ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({}, "max_tokens", 9),
        ({"stop_sequences": ["a"]}, "stop", ["a"]),
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"top_k": 5}, "top_k", 5),
        ({"stream": True}, "stream", True),
        ({"metadata": {"user_id": "u"}}, "user", "u"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "required"),
        (
            {"tool_choice": {"type": "tool", "name": "f"}},
            *("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ),
        (
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            *("parallel_tool_calls", False),
        ),
        ({"output_config": {"effort": "max"}}, "reasoning_effort", "xhigh"),
        (
            {"tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]},
            *("tools", [TOOL]),
        ),
        ({"crossroads": {"policy": "p"}}, "crossroads", {"policy": "p"}),
    ],
)
def test_parameters_of_messages_have_counterparts(given: Any, name: str, expected: Any) -> None:
    assert back(**given)[name] == expected


def test_the_system_text_becomes_the_first_message() -> None:
    plain = back(system=[text("one"), text("two")])["messages"][0]
    assert plain == {"role": "system", "content": "one\n\ntwo"}
    marked = [{**text("one"), "cache_control": {"type": "ephemeral"}}]
    assert back(system=marked)["messages"][0]["content"] == marked


def test_a_turn_with_tool_results_becomes_several_messages() -> None:
    result = {"type": "tool_result", "tool_use_id": "a", "content": [text("one")]}
    image = {"type": "image", "source": {"type": "url", "url": "https://a/b"}}
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    messages = back(
        {"role": "assistant", "content": [thought, text("so"), use]},
        {"role": "user", "content": [result, text("and"), image]},
    )["messages"]
    function = {"name": "f", "arguments": '{"x":1}'}
    assert messages == [
        {
            "role": "assistant",
            "content": "so",
            "tool_calls": [{"id": "a", "type": "function", "function": function}],
            "thinking_blocks": [thought],
        },
        {"role": "tool", "tool_call_id": "a", "content": "one"},
        {
            "role": "user",
            "content": [text("and"), {"type": "image_url", "image_url": {"url": "https://a/b"}}],
        },
    ]


def test_tools_that_run_at_the_vendor_are_left_to_the_upstream() -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    assert back(tools=[search])["tools"] == [search]


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([{"role": "tool", "content": "x"}], {}, "messages[0].role"),
        (
            [{"role": "user", "content": [{"type": "tool_result"}]}],
            *({}, "messages[0].content[0].tool_use_id"),
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, "messages[0].content[0].text"),
        ([USER], {"tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ([USER], {"metadata": 3}, "metadata"),
    ],
)
def test_what_is_no_messages_request_is_refused(messages: Any, fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as raised:
        back(*messages, **fields)
    assert (raised.value.status, raised.value.param) == (400, param)


@given(answer=own.answers())
def test_an_answer_survives_as_part_of_the_next_request(answer: dict[str, Any]) -> None:
    message = {
        name: value
        for name, value in answer["choices"][0]["message"].items()
        if name != "reasoning_content"  # unsigned thoughts do not go back
    }
    asked = [USER, message, USER]
    there = to_messages_request({"model": "m", "messages": asked})
    again = from_messages_request(there)["messages"]
    if not message.get("content") and not message.get("tool_calls"):
        assert again == [{"role": "user", "content": [text("Hi"), text("Hi")]}]
        return
    assert again[1]["content"] == message["content"]
    assert _calls(again[1]) == _calls(message)


def _calls(message: dict[str, Any]) -> list[tuple[str, str, Any]]:
    return [
        (call["id"], call["function"]["name"], orjson.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", ())
    ]


@pytest.mark.parametrize("content", ["no such file", [text("no such file")]])
def test_a_tool_that_failed_is_told_in_words(content: Any) -> None:
    result = {"type": "tool_result", "tool_use_id": "a", "content": content, "is_error": True}
    body = {"messages": [{"role": "user", "content": [result]}]}
    tool = {"role": "tool", "tool_call_id": "a", "content": "The tool failed: no such file"}
    assert from_messages_request(body)["messages"] == [tool]
