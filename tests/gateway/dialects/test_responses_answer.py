from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from crossroads.gateway.dialects.responses_answer import to_responses_answer, to_responses_usage
from tests.gateway.dialects import strategies as own
from tests.gateway.dialects.canned import USAGE, answer


def test_an_answer_with_calls_has_an_item_for_each() -> None:
    response = to_responses_answer(answer("tools"), {}, "m")
    message, *calls = response["output"]
    assert message["content"][0]["text"] == "Let me see."
    assert [(call["call_id"], call["arguments"]) for call in calls] == [
        *(("call_Paris", '{"city":"Paris"}'), ("call_Rome", '{"city":"Rome"}'))
    ]
    ids = [item["id"] for item in response["output"]]
    assert len(set(ids)) == 3 and ids[0].startswith("msg_") and ids[1].startswith("fc_")


def test_defaults_stand_where_the_request_says_nothing() -> None:
    response = to_responses_answer(answer("text"), {"temperature": None}, "m")
    assert response["object"] == "response" and response["error"] is None
    assert response["text"] == {"format": {"type": "text"}}
    assert (response["tool_choice"], response["tools"]) == ("auto", [])
    assert response["metadata"] == {} and response["temperature"] is None


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        *(("stop", "completed", None), ("tool_calls", "completed", None)),
        *(("length", "incomplete", "max_output_tokens"), (None, "completed", None)),
        ("content_filter", "incomplete", "content_filter"),
        *(("eos_token", "completed", None), ("model_length", "incomplete", "max_output_tokens")),
    ],
)
def test_the_status_follows_from_the_finish(finish: Any, status: str, reason: Any) -> None:
    given_answer = answer("text")
    given_answer["choices"][0]["finish_reason"] = finish
    response = to_responses_answer(given_answer, {}, "m")
    assert response["status"] == response["output"][-1]["status"] == status
    assert (response["incomplete_details"] or {}).get("reason") == reason


def test_token_counts_have_their_details() -> None:
    counted = to_responses_usage({**USAGE, "completion_tokens_details": {"reasoning_tokens": 3}})
    assert counted == {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 17,
    }
    assert to_responses_usage(None) is None, "no counts are made up"


@given(own.answers())
def test_text_and_calls_are_all_there(given_answer: dict[str, Any]) -> None:
    message = given_answer["choices"][0]["message"]
    output = to_responses_answer(given_answer, {}, "m")["output"]
    texts = [p["text"] for i in output if i["type"] == "message" for p in i["content"]]
    assert "".join(texts) == (message["content"] or "")
    calls = [i["call_id"] for i in output if i["type"] == "function_call"]
    assert calls == [call["id"] for call in message.get("tool_calls", ())]
