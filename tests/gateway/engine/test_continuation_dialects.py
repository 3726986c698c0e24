"""Continuation in the other dialects."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from crossroads.gateway.call import Event
from crossroads.gateway.contracts import Tally, Usage
from crossroads.prompts.experts.base import ExpertError
from tests.gateway.engine.continuing import CHOICE, an_engine
from tests.gateway.engine.scripted import (
    TEXT,
    WORDS,
    Scripted,
    Step,
    a_call,
    cut,
    gathered_until,
)


def messages_events(words: tuple[str, ...], *, stop: str = "end_turn") -> list[Event]:
    usage = {"input_tokens": 7, "output_tokens": 1}
    message = {"id": "msg", "type": "message", "role": "assistant", "content": [], "usage": usage}
    block = {"type": "text", "text": ""}
    deltas: list[Event] = [
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": word},
        }
        for word in words
    ]
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]


def run_messages(
    *upstreams: Scripted, prefills: tuple[str, ...] = ("b",)
) -> tuple[list[Event], ExpertError | None, Tally]:
    call, tally = a_call("messages", is_stream=True), Tally()
    call.native = {"max_tokens": 100, "messages": [{"role": "user", "content": "?"}]}
    engine = an_engine(*upstreams, prefills=prefills)
    events, error = asyncio.run(gathered_until(engine, call, CHOICE, tally))
    return events, error, tally


@pytest.mark.parametrize("after", range(1, len(WORDS) + 4))
def test_a_broken_message_goes_on_in_its_open_block(after: int) -> None:
    done = max(0, after - 3)
    first = Scripted("a", cut(after, messages_events(WORDS)), speaks=("messages",))
    second = Scripted("b", Step(events=messages_events(WORDS[done:])), speaks=("messages",))
    events, error, tally = run_messages(first, second)
    assert error is None
    kinds = [kind for event in events if (kind := event["type"]) != "ping"]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [
        *("message_start", "content_block_start", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert kinds.count("message_start") == kinds.count("content_block_start") == 1
    assert tally.text == TEXT
    assert (tally.finish, tally.is_complete, tally.dialect) == ("stop", True, "messages")
    assert tally.answer is not None
    assert tally.answer["content"] == [{"type": "text", "text": TEXT}]
    assert second.orders[0].dialect == "messages"
    if done:
        assert second.orders[0].body["messages"][-1]["role"] == "assistant"
        produced = -(-len("".join(WORDS[:done])) // 4)
        assert second.orders[0].body["max_tokens"] <= 100 - produced + 1
        told = next(e["usage"] for e in events if e["type"] == "message_delta")
        usage = tally.usage
        assert usage is not None
        assert told == {"input_tokens": 14, "output_tokens": usage.output_tokens}


def test_a_continued_message_that_only_begins_like_the_answer_is_kept_whole() -> None:
    first = Scripted("a", cut(6, messages_events(WORDS)), speaks=("messages",))
    second = Scripted("b", Step(events=messages_events(("The quick",))), speaks=("messages",))
    _, error, tally = run_messages(first, second)
    assert error is None
    assert tally.text == "The quick brown The quick"


def test_a_message_is_not_continued_in_another_dialect_or_after_its_block() -> None:
    first = Scripted("a", cut(5, messages_events(WORDS)), speaks=("messages",))
    for second in (
        Scripted("b", Step()),  # speaks chat alone
        Scripted("b", Step(events=messages_events(WORDS)), speaks=("messages",)),
    ):
        prefills = ("b",) if "chat" in second.speaks else ()
        _, error, _ = run_messages(first, second, prefills=prefills)
        assert error is not None
        assert second.orders == []
    late = Scripted("a", cut(len(WORDS) + 4, messages_events(WORDS)), speaks=("messages",))
    second = Scripted("b", Step(events=messages_events(WORDS)), speaks=("messages",))
    _, error, tally = run_messages(late, second)
    assert error is not None
    assert second.orders == []
    assert not tally.is_complete


def test_a_broken_message_is_billed_for_what_came_and_not_for_what_was_told_at_its_start() -> None:
    first = Scripted("a", cut(8, messages_events(WORDS)), speaks=("messages",))
    _, error, tally = run_messages(first, prefills=())
    assert error is not None
    assert tally.text == "The quick brown fox jumps "
    assert tally.usage == tally.attempts[0].usage == Usage(7, 7, True)


def test_a_continued_message_that_turns_to_something_else_is_an_error() -> None:
    events = messages_events(WORDS)
    events[1] = {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}}
    first = Scripted("a", cut(5, messages_events(WORDS)), speaks=("messages",))
    second = Scripted("b", Step(events=events), speaks=("messages",))
    _, error, tally = run_messages(first, second)
    assert error is not None
    assert not tally.is_complete


def test_a_message_with_thoughts_and_a_tool_is_put_together() -> None:
    def delta(index: int, **fields: str) -> Event:
        return {"type": "content_block_delta", "index": index, "delta": fields}

    def begin(index: int, **block: Any) -> Event:
        return {"type": "content_block_start", "index": index, "content_block": block}

    events = [
        messages_events(())[0],
        begin(0, type="thinking", thinking=""),
        delta(0, type="thinking_delta", thinking="hm"),
        delta(0, type="signature_delta", signature="s"),
        {"type": "content_block_stop", "index": 0},
        begin(1, type="tool_use", id="t", name="look", input={}),
        delta(1, type="input_json_delta", partial_json='{"a":'),
        delta(1, type="input_json_delta", partial_json="1}"),
        {"type": "content_block_stop", "index": 1},
        *messages_events((), stop="tool_use")[-2:],
    ]
    _, error, tally = run_messages(Scripted("a", Step(events=events), speaks=("messages",)))
    assert error is None
    assert tally.answer is not None
    assert tally.answer["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "tool_use", "id": "t", "name": "look", "input": {"a": 1}},
    ]
    assert (tally.text, tally.finish, tally.usage) == ("", "tool_calls", Usage(7, 5))


def text_events(words: tuple[str, ...]) -> list[Event]:
    head = {"id": "cmpl", "object": "text_completion", "created": 1, "model": "up"}
    choices = [{"index": 0, "text": word, "finish_reason": None} for word in words]
    choices.append({"index": 0, "text": "", "finish_reason": "length"})
    return [{**head, "choices": [choice]} for choice in choices]


@pytest.mark.parametrize("after", range(1, len(WORDS) + 1))
def test_a_broken_text_completion_goes_on_after_its_prompt(after: int) -> None:
    speaks = ("completions",)
    first = Scripted("a", cut(after, text_events(WORDS)), speaks=speaks)
    second = Scripted("b", Step(events=text_events(WORDS[after:])), speaks=speaks)
    call, tally = a_call("completions", is_stream=True), Tally()
    call.native = {"prompt": "Once ", "max_tokens": 50}
    engine = an_engine(first, second, prefills=())
    events, error = asyncio.run(gathered_until(engine, call, CHOICE, tally))
    assert error is None
    assert "".join(event["choices"][0]["text"] for event in events) == TEXT == tally.text
    assert second.orders[0].body["prompt"] == "Once " + "".join(WORDS[:after]).rstrip()
    assert (tally.finish, tally.is_complete) == ("length", True)
    assert tally.answer is not None
    assert tally.answer["choices"][0]["text"] == TEXT


@pytest.mark.parametrize("fields", [{"prompt": ["a"]}, {"prompt": "a", "echo": True}])
def test_text_completions_that_are_no_plain_continuation_are_not_continued(
    fields: dict[str, Any],
) -> None:
    speaks = ("completions",)
    second = Scripted("b", Step(events=text_events(WORDS)), speaks=speaks)
    engine = an_engine(Scripted("a", cut(2, text_events(WORDS)), speaks=speaks), second)
    call = a_call("completions", is_stream=True)
    call.native = fields
    _, error = asyncio.run(gathered_until(engine, call, CHOICE, Tally()))
    assert error is not None
    assert second.orders == []


def response_events(status: str = "completed") -> list[Event]:
    part = {"type": "output_text", "text": TEXT}
    item = {"type": "message", "content": [part]}
    usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    whole = {"id": "resp", "status": status, "output": [item], "usage": usage}
    deltas = [{"type": "response.output_text.delta", "delta": word} for word in WORDS]
    created: Event = {"type": "response.created", "response": {"id": "resp", "output": []}}
    return [created, *deltas, {"type": f"response.{status}", "response": whole}]


def test_a_response_fills_the_tally_and_is_never_continued() -> None:
    speaks = ("responses",)
    first = Scripted("a", Step(events=response_events()), cut(4, response_events()), speaks=speaks)
    second = Scripted("b", Step(events=response_events()), speaks=speaks)
    engine = an_engine(first, second)
    call, tally = a_call("responses", is_stream=True), Tally()
    call.native = {"input": "?"}
    _, error = asyncio.run(gathered_until(engine, call, CHOICE, tally))
    assert error is None
    assert (tally.text, tally.finish, tally.usage) == (TEXT, "stop", Usage(7, 5))
    assert tally.answer is not None
    assert tally.answer["id"] == "resp"
    tally = Tally()
    _, error = asyncio.run(gathered_until(engine, call, CHOICE, tally))
    assert error is not None
    assert second.orders == []
    assert tally.usage == Usage(21, 4, True)
