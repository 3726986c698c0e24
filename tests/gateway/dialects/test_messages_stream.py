from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.dialects import ChatToMessages, MessagesToChat
from crossroads.prompts.experts.base import ExpertError, assemble, chunks_of
from tests.gateway.dialects import strategies as own
from tests.gateway.dialects.canned import answer, chunks
from tests.gateway.dialects.test_messages_answer import parsed

Stream = tuple[list[dict[str, Any]], dict[str, Any]]


def to_events(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    translator = ChatToMessages("m")
    events = [event for chunk in given for event in translator.feed([chunk])]
    return [*events, *translator.end()]


def shapes(events: list[dict[str, Any]]) -> list[str]:
    """Return types, with the index and kind of blocks; deltas in a row count once."""
    found: list[str] = []
    for event in events:
        shape = event["type"].removeprefix("content_block_")
        if "index" in event:
            part = event.get("content_block") or event.get("delta") or {}
            shape = f"{shape} {event['index']} {part.get('type', '')}".strip()
        if not found or found[-1] != shape:
            found.append(shape)
    return found


def call(index: int, arguments: str, **fields: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **fields.pop("function", {})}
    delta = {"tool_calls": [{"index": index, **fields, "function": function}]}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def begun(index: int, arguments: str = "") -> dict[str, Any]:
    return call(index, arguments, id=f"call_{index}", function={"name": f"f{index}"})


def test_text_and_parallel_calls_have_the_golden_grammar() -> None:
    assert shapes(to_events(chunks("tools"))) == [
        *("message_start", "start 0 text", "delta 0 text_delta", "stop 0"),
        *("start 1 tool_use", "delta 1 input_json_delta", "stop 1"),
        *("start 2 tool_use", "delta 2 input_json_delta", "stop 2"),
        *("message_delta", "message_stop"),
    ]


def test_the_events_are_these() -> None:
    first, *rest = to_events(chunks("length"))
    message = first["message"]
    assert message["id"].startswith("msg_") and message["usage"]["output_tokens"] == 0
    assert rest == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": text},
            }
            for text in ("Hel", "lo,", " wo", "r")
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": {
                "input_tokens": 8,
                "output_tokens": 5,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 4,
            },
        },
        {"type": "message_stop"},
    ]


def test_mixed_fragments_of_parallel_calls_still_give_block_after_block() -> None:
    mixed = [
        *(begun(0, '{"a"'), begun(1, '{"b"'), call(0, ":1}"), call(1, ":2}")),
        *(begun(2, "{}"), call(0, "")),
    ]
    events = to_events(mixed)
    assert [shape for shape in shapes(events) if shape.startswith("st")] == [
        *("start 0 tool_use", "stop 0", "start 1 tool_use", "stop 1", "start 2 tool_use", "stop 2")
    ]
    written: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            fragment = event["delta"]["partial_json"]
            written[event["index"]] = written.get(event["index"], "") + fragment
    assert set(written.values()) == {"{}", '{"a":1}', '{"b":2}'}


def test_a_whole_answer_given_as_chunks_keeps_its_calls_and_thoughts_apart() -> None:
    thinking = [{"type": "thinking", "thinking": t, "signature": t} for t in ("one", "two")]
    whole = answer("tools")
    whole["choices"][0]["message"] |= {"thinking_blocks": thinking, "reasoning_content": "onetwo"}
    events = to_events(list(chunks_of(whole, include_usage=True)))
    started = [e["content_block"] for e in events if e["type"] == "content_block_start"]
    assert [b["type"] for b in started] == ["thinking"] * 2 + ["text"] + ["tool_use"] * 2
    assert [b["id"] for b in started[3:]] == ["call_Paris", "call_Rome"]
    thoughts = [e["delta"] for e in events if e.get("index") in (0, 1) and "delta" in e]
    assert [d.get("thinking") or d["signature"] for d in thoughts] == ["one", "one", "two", "two"]


def test_a_second_choice_is_left_out() -> None:
    both = {
        "choices": [
            {"index": index, "delta": {"content": str(index)}, "finish_reason": None}
            for index in (0, 1)
        ]
    }
    texts = [e["delta"]["text"] for e in to_events([both]) if e["type"] == "content_block_delta"]
    assert texts == ["0"]


@given(stream=own.streams())
def test_blocks_are_opened_and_closed_one_after_the_other(stream: Stream) -> None:
    events = to_events(stream[0])
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    opened = -1
    is_open = False
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert not is_open and event["index"] == opened + 1
            opened, is_open = event["index"], True
        else:
            assert is_open and event["index"] == opened
            is_open = event["type"] != "content_block_stop"
    assert not is_open


@given(stream=own.streams())
def test_a_stream_survives_the_way_there_and_back(stream: Stream) -> None:
    given_chunks, answer = stream
    again = MessagesToChat().feed(to_events(given_chunks))
    whole = assemble(again, model="m")
    message = whole["choices"][0]["message"]
    thoughts = "".join(
        choice["delta"].get("reasoning_content") or ""
        for chunk in again
        for choice in chunk["choices"]
    )
    if thoughts:
        message["reasoning_content"] = thoughts
    expected = parsed(answer)
    assert parsed(whole) == {**expected, "content": expected["content"] or ""}


@given(st.data())
def test_batches_do_not_change_the_events(data: st.DataObject) -> None:
    given_chunks, _ = data.draw(own.streams())
    translator = ChatToMessages("m")
    events = [e for batch in data.draw(own.batches(given_chunks)) for e in translator.feed(batch)]
    events += translator.end()
    expected = to_events(given_chunks)
    assert events[1:] == expected[1:] and events[0]["type"] == "message_start"
    reader = MessagesToChat()
    chunks_again = [c for batch in data.draw(own.batches(events)) for c in reader.feed(batch)]
    assert [_plain(c) for c in chunks_again] == [_plain(c) for c in MessagesToChat().feed(expected)]


def _plain(chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chunk.items() if name not in ("id", "created")}


def test_events_become_chunks() -> None:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1}
    events = [
        {"type": "message_start", "message": {"id": "msg_1", "model": "up", "usage": usage}},
        {"type": "ping"},
        block(0, {"type": "thinking", "thinking": "", "signature": ""}),
        delta(0, {"type": "thinking_delta", "thinking": "hm"}),
        delta(0, {"type": "signature_delta", "signature": "sig"}),
        {"type": "content_block_stop", "index": 0},
        block(1, {"type": "text", "text": ""}),
        delta(1, {"type": "text_delta", "text": "Hi"}),
        {"type": "content_block_stop", "index": 1},
        block(2, {"type": "tool_use", "id": "t", "name": "f", "input": {}}),
        delta(2, {"type": "input_json_delta", "partial_json": ""}),
        {"type": "content_block_stop", "index": 2},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {"output_tokens": 9, "input_tokens": None},
        },
        {"type": "message_stop"},
    ]
    *given_chunks, last = MessagesToChat().feed(events)
    deltas = [chunk["choices"][0]["delta"] for chunk in given_chunks]
    thinking = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    head = {"index": 0, "id": "t", "type": "function"}
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"thinking_blocks": [thinking]},
        {"content": "Hi"},
        {"tool_calls": [{**head, "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert given_chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert last["choices"] == [] and last["usage"]["prompt_tokens"] == 7
    assert last["usage"]["completion_tokens"] == 9
    assert {chunk["id"] for chunk in [*given_chunks, last]} == {"msg_1"}


def test_signed_thoughts_are_written_with_their_signature() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    hidden = {"type": "redacted_thinking", "data": "xx"}
    deltas = [
        *({"reasoning_content": "hm"}, {"thinking_blocks": [thinking]}),
        *({"thinking_blocks": [hidden]}, {"content": "4"}),
    ]
    events = to_events([{"choices": [{"index": 0, "delta": d}]} for d in deltas])
    assert shapes(events)[1:-2] == [
        *("start 0 thinking", "delta 0 thinking_delta", "delta 0 signature_delta", "stop 0"),
        *("start 1 redacted_thinking", "stop 1", "start 2 text", "delta 2 text_delta", "stop 2"),
    ]


def block(index: int, content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": content}


def delta(index: int, fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": fields}


@pytest.mark.parametrize("bad", [{"delta": "x"}, {"delta": {"tool_calls": 3}}, "x"])
def test_chunks_that_are_none_are_the_upstreams_failure(bad: Any) -> None:
    with pytest.raises(ExpertError) as raised:
        ChatToMessages("m").feed([{"choices": [bad]}])
    assert raised.value.code == "upstream_invalid"


def test_events_are_not_changed_by_translating() -> None:
    given_chunks = chunks("tools")
    before = orjson.dumps(given_chunks)
    to_events(given_chunks)
    assert orjson.dumps(given_chunks) == before
