from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.dialects.responses_answer import to_responses_answer
from crossroads.gateway.dialects.responses_stream import ChatToResponses
from crossroads.prompts.experts.base import chunks_of
from tests.gateway.dialects import strategies as own
from tests.gateway.dialects.canned import answer, chunks

Stream = tuple[list[dict[str, Any]], dict[str, Any]]


def to_events(given: list[dict[str, Any]], **request: Any) -> list[dict[str, Any]]:
    translator = ChatToResponses(request, "m")
    events = [event for chunk in given for event in translator.feed([chunk])]
    return [*events, *translator.end()]


def types(events: list[dict[str, Any]]) -> list[str]:
    """Return the types of events without the prefix; deltas in a row count once."""
    found: list[str] = []
    for event in events:
        name = event["type"].removeprefix("response.")
        if not found or found[-1] != name:
            found.append(name)
    return found


def timeless(value: Any) -> Any:
    """Return a value without what is new in every answer."""
    if isinstance(value, dict):
        left = {k: timeless(v) for k, v in value.items() if k not in ("created_at", "item_id")}
        if str(left.get("id", "")).partition("_")[0] in ("resp", "msg", "rs", "fc"):
            del left["id"]
        return left
    return [timeless(v) for v in value] if isinstance(value, list) else value


MESSAGE = [
    *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
    *("content_part.done", "output_item.done"),
]
CALL = [
    *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
    "output_item.done",
]


def test_text_and_parallel_calls_have_the_golden_sequence() -> None:
    expected = ["created", "in_progress", *MESSAGE, *CALL, *CALL, "completed"]
    assert types(to_events(chunks("tools"))) == expected


def test_thoughts_come_as_an_item_of_their_own() -> None:
    thoughts = [name.replace("output_text", "reasoning_text") for name in MESSAGE]
    expected = ["created", "in_progress", *thoughts, *MESSAGE, "completed"]
    assert types(to_events(chunks("thinking"))) == expected


def test_a_refusal_is_a_part_of_a_message_and_ends_incomplete() -> None:
    refusal = [name.replace("output_text", "refusal") for name in MESSAGE]
    events = to_events(chunks("filtered"))
    assert types(events) == ["created", "in_progress", *refusal, "incomplete"]
    assert events[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}


def test_events_have_these_fields() -> None:
    head = {"output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    item = {"type": "message", "role": "assistant", "status": "in_progress", "content": []}
    whole = {**part, "text": "Hello, wor"}
    done = {**item, "status": "incomplete", "content": [whole]}
    numbered = timeless(to_events(chunks("length")))
    assert [event.pop("sequence_number") for event in numbered] == list(range(len(numbered)))
    assert numbered[2:-1] == [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **head, "part": part},
        *(
            {"type": "response.output_text.delta", **head, "delta": text, "logprobs": []}
            for text in ("Hel", "lo,", " wo", "r")
        ),
        {"type": "response.output_text.done", **head, "text": "Hello, wor", "logprobs": []},
        {"type": "response.content_part.done", **head, "part": whole},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
    ]


def test_every_event_of_an_item_carries_its_id() -> None:
    ids: dict[int, set[str]] = {}
    for event in to_events(chunks("tools")):
        if "output_index" in event:
            found = event.get("item_id") or event["item"]["id"]
            ids.setdefault(event["output_index"], set()).add(found)
    assert [len(found) for found in ids.values()] == [1, 1, 1]
    assert len(set.union(*ids.values())) == 3


def test_the_response_repeats_the_request() -> None:
    tools = [{"type": "function", "name": "f"}]
    request = {"temperature": 0.5, "tools": tools, "metadata": {"a": "b"}, "store": False}
    first, last = to_events(chunks("text"), **request)[:: len(to_events(chunks("text"))) - 1]
    for event in (first, last):
        response = event["response"]
        assert {name: response[name] for name in request} == request
    assert first["response"]["status"] == "in_progress"


@pytest.mark.parametrize("num_chunks", [0, 1, 4])
def test_a_failure_ends_with_error_and_failed_and_nothing_that_says_whole(num_chunks: int) -> None:
    translator = ChatToResponses({}, "m")
    events = translator.feed(chunks("text")[:num_chunks]) if num_chunks else []
    events += translator.fail(code="x", message="cut", param=None, is_limit=False)
    assert types(events)[0] == "created" and types(events)[-2:] == ["error", "failed"]
    assert not {"completed", "incomplete", "output_item.done"} & set(types(events))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "cut"}


@given(stream=own.streams())
def test_a_stream_ends_in_the_answer_it_would_have_been(stream: Stream) -> None:
    given_chunks, whole = stream
    last = to_events(given_chunks)[-1]["response"]
    expected = to_responses_answer(whole, {}, "m")
    message = whole["choices"][0]["message"]
    if not any(message.get(name) for name in ("content", "tool_calls")):
        expected["output"] = [i for i in expected["output"] if i["type"] != "message"]
    if message.get("reasoning_content") or message.get("tool_calls"):
        for response in (last, expected):  # items closed before the end cannot know of it
            for item in response["output"]:
                item["status"] = "completed"
    assert timeless(last) == timeless(expected)


@given(st.data())
def test_batches_do_not_change_the_events(data: st.DataObject) -> None:
    given_chunks, _ = data.draw(own.streams())
    translator = ChatToResponses({}, "m")
    events = [e for batch in data.draw(own.batches(given_chunks)) for e in translator.feed(batch)]
    assert timeless([*events, *translator.end()]) == timeless(to_events(given_chunks))


def test_mixed_fragments_of_parallel_calls_keep_to_their_items() -> None:
    def call(index: int, arguments: str) -> dict[str, Any]:
        function = {"name": f"f{index}", "arguments": arguments}
        delta = {"tool_calls": [{"index": index, "id": f"c{index}", "function": function}]}
        return {"choices": [{"index": 0, "delta": delta}]}

    mixed = [call(0, '{"a"'), call(1, '{"b"'), call(0, ":1}"), call(1, ":2}")]
    output = to_events(mixed)[-1]["response"]["output"]
    assert [(item["call_id"], item["arguments"]) for item in output] == [
        *(("c0", '{"a":1}'), ("c1", '{"b":2}'))
    ]


def test_a_whole_answer_given_as_chunks_keeps_its_calls_apart() -> None:
    events = to_events(list(chunks_of(answer("tools"), include_usage=True)))
    output = events[-1]["response"]["output"]
    assert [item.get("call_id") for item in output] == [None, "call_Paris", "call_Rome"]


def test_log_probabilities_are_passed_on() -> None:
    logprobs = [{"token": "x", "logprob": -0.5, "top_logprobs": []}]
    choice = {"index": 0, "delta": {"content": "x"}, "logprobs": {"content": logprobs}}
    events = to_events([{"choices": [choice]}])
    said = {e["type"]: e["logprobs"] for e in events if "logprobs" in e}
    assert list(said.values()) == [logprobs, logprobs]
    whole = answer("text")
    whole["choices"][0]["logprobs"] = {"content": logprobs}
    response = to_responses_answer(whole, {}, "m")
    assert response["output"][0]["content"][0]["logprobs"] == logprobs
