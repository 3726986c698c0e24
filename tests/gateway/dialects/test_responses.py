from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from crossroads.gateway.call import ANYBODY, Call, Client
from crossroads.gateway.dialects import MemoryStore, ResponsesSurface
from crossroads.gateway.errors import ApiError
from tests.gateway.dialects.canned import answer, chunks
from tests.gateway.dialects.reading_events import data_of

ME, OTHER = Client(key_id="me"), Client(key_id="other")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(max_bytes=1 << 20, ttl_s=60)


@pytest.fixture
def surface(store: MemoryStore) -> ResponsesSurface:
    return ResponsesSurface(store)


def call(surface: ResponsesSurface, client: Client = ME, **fields: Any) -> Call:
    body = orjson.dumps({"model": "auto", "input": "Hi", **fields})
    asked = surface.parse(body, client=client, headers={})
    asyncio.run(surface.prepare(asked))
    return asked


def answered(surface: ResponsesSurface, asked: Call, name: str = "text") -> dict[str, Any]:
    rendered: dict[str, Any] = orjson.loads(surface.render(asked, "m", "chat", answer(name)))
    return rendered


def test_the_request_is_kept_as_sent(surface: ResponsesSurface) -> None:
    asked = call(surface, tools=[{"type": "web_search"}], crossroads={"session": "s"})
    assert asked.native == {"model": "auto", "input": "Hi", "tools": [{"type": "web_search"}]}
    assert asked.text == "Hi" and asked.session == "s"


def test_earlier_turns_take_the_place_of_their_id(surface: ResponsesSurface) -> None:
    first = answered(surface, call(surface), "tools")
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "sun"}
        for item in first["output"]
        if item["type"] == "function_call"
    ]
    asked = call(surface, input=results, previous_response_id=first["id"], instructions="New.")
    roles = [message["role"] for message in asked.body["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool"]
    assert len(asked.body["messages"][2]["tool_calls"]) == 2
    assert asked.native is not None and "previous_response_id" not in asked.native
    kinds = [item["type"] for item in asked.native["input"]]
    assert kinds == ["message", "message", *["function_call"] * 2, *["function_call_output"] * 2]
    assert all("id" not in item for item in asked.native["input"])
    assert answered(surface, asked)["previous_response_id"] == first["id"]
    assert asked.input_tokens > call(surface).input_tokens + 20, "the history counts"


def test_a_call_that_was_not_prepared_is_not_answered(surface: ResponsesSurface) -> None:
    body = orjson.dumps({"model": "m", "input": "Hi", "previous_response_id": "resp_1"})
    unprepared = surface.parse(body, client=ME, headers={})
    with pytest.raises(AssertionError, match="prepare"):
        surface.render(unprepared, "m", "chat", answer("text"))
    with pytest.raises(AssertionError, match="prepare"):
        surface.writer(unprepared, "m", "chat")


def test_a_response_of_another_client_cannot_be_continued(surface: ResponsesSurface) -> None:
    first = answered(surface, call(surface))
    with pytest.raises(ApiError) as raised:
        call(surface, OTHER, previous_response_id=first["id"])
    error = raised.value
    assert (error.status, error.code) == (400, "previous_response_not_found")
    assert error.param == "previous_response_id"


def test_without_a_store_nothing_can_be_continued() -> None:
    surface = ResponsesSurface()
    first = answered(surface, call(surface))
    with pytest.raises(ApiError, match="not found"):
        call(surface, previous_response_id=first["id"])


def test_nothing_is_kept_where_the_client_forbids_it(
    surface: ResponsesSurface, store: MemoryStore
) -> None:
    answered(surface, call(surface, store=False))
    assert len(store) == 0
    answered(surface, call(surface, store=True))
    assert len(store) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"previous_response_id": ""}, "previous_response_id"),
        ({"store": "yes"}, "store"),
        ({"stream": "yes"}, "stream"),
        ({"model": None}, "model"),
    ],
)
def test_fields_of_another_kind_are_refused(
    surface: ResponsesSurface, fields: Any, param: str
) -> None:
    with pytest.raises(ApiError) as raised:
        call(surface, **fields)
    assert (raised.value.status, raised.value.param) == (400, param)


NATIVE = {"id": "resp_up", "object": "response", "model": "up", "output": [], "new": 1}


def test_a_native_answer_is_only_renamed_and_kept(
    surface: ResponsesSurface, store: MemoryStore
) -> None:
    rendered = orjson.loads(surface.render(call(surface), "m", "responses", NATIVE))
    assert rendered == {**NATIVE, "model": "m", "previous_response_id": None}
    stored = asyncio.run(store.get("me", "resp_up"))
    assert stored is not None and stored.response == rendered


def test_native_events_pass_and_the_last_is_kept(
    surface: ResponsesSurface, store: MemoryStore
) -> None:
    events = [
        {"type": "response.created", "sequence_number": 0, "response": NATIVE},
        {"type": "response.new", "sequence_number": 1, "x": 1},
        {"type": "response.completed", "sequence_number": 2, "response": NATIVE},
    ]
    writer = surface.writer(call(surface, stream=True), "m", "responses")
    written = data_of(writer.feed(events[:2]))
    assert written[0]["response"]["model"] == "m" and written[1] == events[1]
    assert len(store) == 0
    assert data_of(writer.feed(events[2:]) + writer.end())[0]["response"]["new"] == 1
    assert asyncio.run(store.get("me", "resp_up")) is not None


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_a_failed_stream_says_so_and_is_not_kept(
    surface: ResponsesSurface, store: MemoryStore, dialect: Any
) -> None:
    head = chunks("text")[:3]
    if dialect == "responses":
        head = [{"type": "response.created", "sequence_number": 0, "response": NATIVE}]
    writer = surface.writer(call(surface, stream=True), "m", dialect)
    raw = writer.feed(head) + writer.fail(ApiError("slow down", status=429))
    events = data_of(raw)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "rate_limit_exceeded"
    assert len(store) == 0


def test_a_native_stream_that_fails_at_once_says_so(surface: ResponsesSurface) -> None:
    writer = surface.writer(call(surface, stream=True), "m", "responses")
    events = data_of(writer.fail(ApiError("gone", status=502)))
    assert [event["type"] for event in events] == ["error", "response.failed"]


def test_anybody_is_one_client(surface: ResponsesSurface) -> None:
    first = answered(surface, call(surface, ANYBODY))
    again = call(surface, ANYBODY, previous_response_id=first["id"])
    assert len(again.body["messages"]) == 3


def test_what_was_read_of_a_call_is_read_anew_with_the_earlier_turns(
    surface: ResponsesSurface,
) -> None:
    first = answered(surface, call(surface))
    body = orjson.dumps({"model": "m", "input": "and?", "previous_response_id": first["id"]})
    again = surface.parse(body, client=ME, headers={})
    before = (again.input_tokens, again.conversation_text, again.inputs, again.text)
    asyncio.run(surface.prepare(again))
    assert again.input_tokens == again.size // 4 + 1 > before[0]
    assert len(again.conversation_text) > len(before[1])
    assert again.text == "and?"
