from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.dialects import MessagesToChat, from_messages_answer, to_messages_answer
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.dialects import strategies as own


def parsed(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what both sides of a round trip must agree on."""
    choice = answer["choices"][0]
    message = choice["message"]
    return {
        "content": message["content"],
        "thoughts": message.get("reasoning_content"),
        "calls": [
            (call["id"], call["function"]["name"], orjson.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls", ())
        ],
        "finish": choice["finish_reason"],
        "usage": answer["usage"],
    }


@given(answer=own.answers())
def test_an_answer_survives_the_way_there_and_back(answer: dict[str, Any]) -> None:
    assert parsed(from_messages_answer(to_messages_answer(answer, "m"))) == parsed(answer)


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "up",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b", "citations": []},
        {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 5,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 2,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 4},
    },
}


def test_a_message_becomes_a_completion() -> None:
    answer = from_messages_answer(MESSAGE)
    assert (answer["id"], answer["object"]) == ("msg_1", "chat.completion")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "ab",
                "tool_calls": [
                    {
                        "id": "t",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"x":1}'},
                    }
                ],
                "reasoning_content": "hm",
                "thinking_blocks": [MESSAGE["content"][0]],
            },
            "finish_reason": "tool_calls",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 7,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *(("end_turn", "stop"), ("stop_sequence", "stop"), ("pause_turn", "stop")),
        *(("max_tokens", "length"), ("model_context_window_exceeded", "length")),
        *(("tool_use", "tool_calls"), ("refusal", "content_filter"), ("new", "new")),
    ],
)
def test_every_stop_reason_has_a_finish(reason: str, finish: str) -> None:
    answer = from_messages_answer({**MESSAGE, "stop_reason": reason})
    assert answer["choices"][0]["finish_reason"] == finish


def test_the_stop_sequence_survives() -> None:
    stopped = {**MESSAGE, "stop_reason": "stop_sequence", "stop_sequence": "END", "content": []}
    answer = from_messages_answer(stopped)
    assert answer["choices"][0]["stop_reason"] == "END"
    again = to_messages_answer(answer, "m")
    assert (again["stop_reason"], again["stop_sequence"]) == ("stop_sequence", "END")


def test_a_malformed_call_keeps_what_the_model_wrote() -> None:
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{oops"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}]}
    translated = to_messages_answer(answer, "m")
    assert translated["content"][0]["input"] == {"_raw": "{oops"}
    assert translated["stop_reason"] == "tool_use"


def test_a_refusal_is_one() -> None:
    message = {"role": "assistant", "content": None, "refusal": "No."}
    answer = to_messages_answer({"choices": [{"message": message, "finish_reason": "stop"}]}, "m")
    assert answer["content"] == [{"type": "text", "text": "No."}]
    assert answer["stop_reason"] == "refusal"


@given(answer=st.dictionaries(st.sampled_from(["choices", "content", "usage"]), own.json_values))
def test_what_is_no_answer_is_the_upstreams_failure(answer: dict[str, Any]) -> None:
    for translate in (from_messages_answer, lambda body: to_messages_answer(body, "m")):
        try:
            assert isinstance(translate(answer), dict)
        except ExpertError as error:
            assert (error.status, error.code) == (502, "upstream_invalid")


@pytest.mark.parametrize("told", [None, {}, {"input_tokens": -7, "output_tokens": 3}])
def test_counts_that_tell_nothing_are_left_out_not_made_zero(told: Any) -> None:
    assert "usage" not in from_messages_answer({**MESSAGE, "usage": told})
    translator = MessagesToChat()
    start = {"type": "message_start", "message": {"usage": told}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": None}
    chunks = translator.feed([start, end])
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        *(("stop", "end_turn"), ("eos_token", "end_turn"), (None, "end_turn"), ([], "end_turn")),
        *(("length", "max_tokens"), ("model_length", "max_tokens"), ("new", "max_tokens")),
    ],
)
def test_an_answer_that_ended_for_an_unknown_reason_does_not_look_whole(
    finish: Any, reason: str
) -> None:
    answer = {"choices": [{"message": {"content": "half"}, "finish_reason": finish}]}
    assert to_messages_answer(answer, "m")["stop_reason"] == reason
