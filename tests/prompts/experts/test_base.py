from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.experts.base import (
    ExpertError,
    assemble,
    chunks_of,
    completion,
    last_user_text,
    usage_of,
    wants_usage,
)

TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "a"}], "a"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "b"),
        ([{"role": "system", "content": "s"}], "s"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}], "a\nb"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], ""),
        ([{"role": "user", "content": None}], ""),
        ([{"role": "user"}], ""),
        ([{"role": "user", "content": [1, {"text": 2}]}], ""),
        ([], ""),
        (["hello"], ""),
        ("hello", ""),
        (None, ""),
    ],
)
def test_the_last_user_message_is_what_is_asked(messages: Any, text: str) -> None:
    assert last_user_text(messages) == text


@given(st.text(), st.booleans())
def test_a_stream_of_a_whole_answer_joins_to_the_same_answer(text: str, counts: bool) -> None:
    answer = completion(text, model="m", finish_reason="length", usage=usage_of(3, 4))
    chunks = list(chunks_of(answer, include_usage=counts))
    joined = assemble(chunks, model="m")
    expected = answer["usage"] if counts else usage_of(0, 0)
    assert joined["choices"] == answer["choices"]
    assert joined["usage"] == expected
    assert all(("usage" in chunk) == counts for chunk in chunks)


def test_tool_calls_survive_a_stream_in_fragments() -> None:
    def part(**delta: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    def fragment(**function: str) -> dict[str, Any]:
        return {"index": 0, "function": function}

    first = {**fragment(name="f", arguments=""), "id": "c1", "type": "function"}
    chunks = [
        part(role="assistant", content=None),
        part(tool_calls=[first]),
        part(tool_calls=[fragment(arguments='{"a"')]),
        part(tool_calls=[fragment(arguments=": 1}")]),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    ]
    choice = assemble(chunks, model="m")["choices"][0]
    assert choice["message"]["tool_calls"] == [TOOL_CALL]
    assert choice["finish_reason"] == "tool_calls"


def test_log_probabilities_are_concatenated() -> None:
    chunks = [
        {"choices": [{"delta": {"content": c}, "logprobs": {"content": [{"token": c}]}}]}
        for c in "ab"
    ]
    joined = assemble(chunks, model="m")["choices"][0]
    assert joined["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}
    assert joined["message"]["content"] == "ab"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [(None, False), ({}, False), ({"include_usage": True}, True), ({"include_usage": 1}, False)],
)
def test_token_counts_come_only_when_asked_for(options: Any, wanted: bool) -> None:
    assert wants_usage({"stream_options": options}) is wanted


@pytest.mark.parametrize(
    ("status", "again"), [(400, False), (404, False), (408, True), (429, True), (502, True)]
)
def test_failures_that_may_pass_can_be_retried(status: int, again: bool) -> None:
    assert ExpertError("x", status=status).can_be_retried is again
