from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.call import ANYBODY, Call
from crossroads.gateway.dialects import MessagesSurface
from crossroads.gateway.errors import ApiError
from tests.gateway.dialects import strategies as own
from tests.gateway.dialects.canned import chunks
from tests.gateway.dialects.reading_events import data_of, events_of

SURFACE = MessagesSurface()


def call(**fields: Any) -> Call:
    body = {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    return SURFACE.parse(orjson.dumps({**body, **fields}), client=ANYBODY, headers={})


def test_the_request_is_kept_as_sent_without_the_gateways_own_fields() -> None:
    asked = call(thinking={"type": "adaptive"}, crossroads={"session": "s"}, stream=True)
    assert asked.native is not None and asked.native["thinking"] == {"type": "adaptive"}
    assert "crossroads" not in asked.native
    assert asked.session == "s" and asked.is_stream and asked.text == "Hi"
    assert asked.in_dialect("messages") is asked.native
    assert asked.in_dialect("chat")["max_tokens"] == 9


@pytest.mark.parametrize("bound", ["9", True, 1.5])
def test_a_bound_that_is_no_number_is_refused(bound: Any) -> None:
    with pytest.raises(ApiError) as raised:
        call(max_tokens=bound)
    assert raised.value.param == "max_tokens"


def test_a_native_message_is_only_renamed() -> None:
    message = {"id": "msg_1", "type": "message", "model": "up", "content": [], "new": 1}
    rendered = orjson.loads(SURFACE.render(call(), "m", "messages", message))
    assert rendered == {**message, "model": "m"}


def test_native_events_pass_with_their_names() -> None:
    events = [
        {"type": "message_start", "message": {"id": "msg_1", "model": "up", "usage": {}}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "new", "x": 1}},
        {"type": "message_stop"},
    ]
    writer = SURFACE.writer(call(stream=True), "m", "messages")
    written = data_of(writer.feed(events[:2]) + writer.feed(events[2:]) + writer.end())
    assert written[0]["message"] == {"id": "msg_1", "model": "m", "usage": {}}
    assert written[1:] == events[1:]
    assert events[0]["message"]["model"] == "up", "events are not changed"


@pytest.mark.parametrize("dialect", ["chat", "messages"])
def test_a_failure_ends_with_an_error_event(dialect: Any) -> None:
    writer = SURFACE.writer(call(stream=True), "m", dialect)
    head = chunks("text")[:3]
    if dialect == "messages":
        head = [{"type": "message_start", "message": {}}]
    events = events_of(writer.feed(head) + writer.fail(ApiError("cut", status=502)))
    error = {"type": "error", "error": {"type": "api_error", "message": "cut"}}
    assert events[-1] == ("error", error)
    assert all(name not in ("message_delta", "message_stop") for name, _ in events)


@given(st.data())
def test_batches_do_not_change_the_bytes(data: st.DataObject) -> None:
    events, _ = data.draw(own.streams())
    written = []
    for parts in ([[event] for event in events], data.draw(own.batches(events))):
        writer = SURFACE.writer(call(stream=True), "m", "chat")
        raw = b"".join([writer.feed(part) for part in parts]) + writer.end()
        written.append(data_of(raw)[1:])  # the first has the new id
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, "invalid_request_error"), (401, "authentication_error"), (402, "billing_error")),
        *((403, "permission_error"), (404, "not_found_error"), (413, "request_too_large")),
        *((422, "invalid_request_error"), (429, "rate_limit_error"), (500, "api_error")),
        *((502, "api_error"), (503, "overloaded_error"), (504, "timeout_error")),
        (529, "overloaded_error"),
    ],
)
def test_every_status_has_an_error_type(status: int, kind: str) -> None:
    body = orjson.loads(SURFACE.error(ApiError("no", status=status), "req_1"))
    error = {"type": kind, "message": "no"}
    assert body == {"type": "error", "error": error, "request_id": "req_1"}


def test_an_overload_has_the_status_of_the_api() -> None:
    assert [SURFACE.status(ApiError("x", status=s)) for s in (400, 503, 529)] == [400, 529, 529]


def counted(**fields: Any) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    answer = orjson.loads(SURFACE.count_tokens(orjson.dumps(body)))
    assert answer["is_estimate"] is True
    return int(answer["input_tokens"])


def test_counts_grow_with_texts_tools_and_images() -> None:
    base = counted()
    assert counted(system="x" * 400) == base + 100
    assert counted(tools=[{"name": "f", "input_schema": {"type": "object"}}]) > base
    image = {"type": "image", "source": {"data": "A" * 10**6}}
    with_image = counted(messages=[{"role": "user", "content": [image]}])
    assert 1_000 <= with_image < 1_100


def test_counting_needs_messages() -> None:
    with pytest.raises(ApiError):
        SURFACE.count_tokens(b'{"model":"m"}')


def test_tokens_for_a_model_that_does_not_exist_are_not_counted() -> None:
    body = b'{"model":"gone","messages":[{"role":"user","content":"Hi"}]}'
    with pytest.raises(ApiError, match="The model 'gone' does not exist") as caught:
        SURFACE.count_tokens(body, is_known={"m"}.__contains__)
    assert caught.value.status == 404
    answer = orjson.loads(SURFACE.error(caught.value, "req_1"))
    assert answer["error"]["type"] == "not_found_error"
