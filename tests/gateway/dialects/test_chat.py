from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.call import ANYBODY, Call
from crossroads.gateway.dialects import ChatSurface
from crossroads.gateway.errors import ApiError
from crossroads.prompts.experts.base import chunks_of
from tests.gateway.dialects import strategies as own
from tests.gateway.dialects.canned import answer, chunks
from tests.gateway.dialects.reading_events import events_of

SURFACE = ChatSurface()
MESSAGES = [{"role": "user", "content": "Hi"}]


def call(headers: dict[bytes, bytes] | None = None, **fields: Any) -> Call:
    body = {"model": "auto", "messages": MESSAGES, **fields}
    return SURFACE.parse(orjson.dumps(body), client=ANYBODY, headers=headers or {})


def written(events: list[dict[str, Any]], *, usage: bool = False) -> list[Any]:
    asked = call(stream=True, stream_options={"include_usage": usage})
    writer = SURFACE.writer(asked, "m", "chat")
    raw = b"".join([writer.feed([event]) for event in events]) + writer.end()
    return [data for _, data in events_of(raw)]


def chunk(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "created": 5, "model": "up", "choices": [choice], **fields}


def test_a_call_says_what_was_asked() -> None:
    asked = call({b"x-a": b"1"}, stream=True, temperature=0.5, unheard_of={"a": 1})
    assert (asked.dialect, asked.model, asked.is_stream) == ("chat", "auto", True)
    assert asked.native is None and asked.headers == {b"x-a": b"1"}
    assert asked.body["unheard_of"] == {"a": 1}, "unknown fields pass through"
    assert asked.size == len(orjson.dumps(asked.body))


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"messages":[{}]}', "model"),
        (b'{"model":"","messages":[{}]}', "model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":[{},"x"]}', "messages[1]"),
        (b'{"model":"m","messages":[{}],"stream":"yes"}', "stream"),
        (b'{"model":"m","messages":[{}],"crossroads":1}', "crossroads"),
    ],
)
def test_what_the_gateway_relies_on_is_checked(raw: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as raised:
        SURFACE.parse(raw, client=ANYBODY, headers={})
    assert (raised.value.status, raised.value.param) == (400, param)


def test_content_that_is_no_text_passes() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}, {"type": "new"}]
    asked = call(messages=[{"role": "user", "content": parts}])
    assert asked.body["messages"][0]["content"] == parts
    assert asked.inputs == {"text", "image"}


def test_an_answer_keeps_what_is_unknown_and_names_who_answered() -> None:
    given = {**answer("text"), "system_fingerprint": "fp"}
    rendered = orjson.loads(SURFACE.render(call(), "m", "chat", given))
    assert rendered == {**given, "model": "m"}


def test_a_foreign_answer_gets_what_clients_rely_on() -> None:
    bare = {"choices": [{"message": {"content": "Hi"}}]}
    rendered = orjson.loads(SURFACE.render(call(), "m", "chat", bare))
    assert rendered["id"].startswith("chatcmpl-") and rendered["object"] == "chat.completion"
    assert isinstance(rendered["created"], int) and rendered["model"] == "m"
    message = {"role": "assistant", "content": "Hi"}
    assert rendered["choices"] == [{"index": 0, "message": message, "finish_reason": None}]


def test_a_stream_has_the_golden_shape() -> None:
    events = [
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}, id="other", created=9),
        chunk({}, "stop"),
    ]
    head = {"id": "c", "created": 5, "model": "m"}
    kind = {"object": "chat.completion.chunk"}

    def expected(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**head, **kind, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    assert written(events) == [
        expected({"role": "assistant", "content": "Hel"}),
        expected({"content": "lo"}),
        expected({}, "stop"),
        "[DONE]",
    ]


def test_the_role_comes_once_in_every_choice() -> None:
    two = [
        {"index": index, "delta": {"role": "assistant", "content": "x"}, "finish_reason": None}
        for index in (0, 1)
    ]
    deltas = [
        choice["delta"]
        for event in written([{"id": "c", "choices": two}, {"id": "c", "choices": two}])[:-1]
        for choice in event["choices"]
    ]
    assert [("role" in delta) for delta in deltas] == [True, True, False, False]


@pytest.mark.parametrize("is_in_last_choice", [False, True])
def test_token_counts_come_last_where_asked_for(is_in_last_choice: bool) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    last = [chunk({}, "stop", usage=usage)]
    if not is_in_last_choice:
        last = [chunk({}, "stop"), {"id": "c", "choices": [], "usage": usage}]
    asked = written([chunk({"content": "x"}), *last], usage=True)
    assert asked[-1] == "[DONE]" and asked[-2]["usage"] == usage and asked[-2]["choices"] == []
    assert [event["usage"] for event in asked[:-2]] == [None, None]
    unasked = written([chunk({"content": "x"}), *last])
    assert len(unasked) == 3 and all("usage" not in event for event in unasked[:-1])


def test_calls_of_a_whole_answer_get_the_index_that_chunks_need() -> None:
    whole = list(chunks_of(answer("tools"), include_usage=False))
    calls = [
        call
        for event in written(whole)[:-1]
        for choice in event["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert [(call["index"], call["id"]) for call in calls] == [(0, "call_Paris"), (1, "call_Rome")]


def test_unknown_fields_of_chunks_and_choices_pass() -> None:
    event = chunk({"content": "x", "reasoning_content": "y"}, system_fingerprint="fp")
    event["choices"][0]["logprobs"] = {"content": []}
    first = written([event])[0]
    assert first["system_fingerprint"] == "fp"
    assert first["choices"][0]["logprobs"] == {"content": []}
    assert first["choices"][0]["delta"]["reasoning_content"] == "y"


def test_a_failure_ends_with_an_error_and_nothing_that_says_whole() -> None:
    writer = SURFACE.writer(call(stream=True), "m", "chat")
    raw = writer.feed([chunk({"content": "x"})]) + writer.fail(ApiError("cut", status=502))
    events = [data for _, data in events_of(raw)]
    assert events[-1]["error"]["message"] == "cut"
    assert b"[DONE]" not in raw and events[0]["choices"][0]["finish_reason"] is None


@given(st.data())
def test_batches_do_not_change_the_bytes(data: st.DataObject) -> None:
    events, _ = data.draw(own.streams())
    asked = call(stream=True, stream_options={"include_usage": True})
    single, batched = (SURFACE.writer(asked, "m", "chat") for _ in range(2))
    one_by_one = b"".join([single.feed([event]) for event in events]) + single.end()
    parts = [batched.feed(batch) for batch in data.draw(own.batches(events))]
    assert b"".join(parts) + batched.end() == one_by_one


def test_events_are_not_changed_by_writing() -> None:
    events = chunks("tools")
    before = orjson.dumps(events)
    written(events, usage=True)
    assert orjson.dumps(events) == before


def test_errors_have_the_shape_of_the_api() -> None:
    error = ApiError("no", status=429, code="x", param="p")
    assert orjson.loads(SURFACE.error(error, "req_1")) == {
        "error": {"message": "no", "type": "rate_limit_error", "param": "p", "code": "x"}
    }
