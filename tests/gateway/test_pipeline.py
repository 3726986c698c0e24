from __future__ import annotations

import json
import urllib.request
from typing import Any

import openai
import pytest

from crossroads.gateway.call import ANYBODY
from crossroads.gateway.dialects import ChatSurface
from crossroads.gateway.errors import ApiError
from tests.gateway.fake_upstream import TEXT, USAGE, FakeUpstream
from tests.gateway.serving import FakeRouter

HELLO: Any = [{"role": "user", "content": "hello"}]
DECISION = {
    "x-crossroads-model": "ok",
    "x-crossroads-policy": "auto fake argmax",
    "x-crossroads-reason": "ok has the highest estimated quality, ? of it",
    "x-crossroads-confidence": "0.5000",
    "x-crossroads-predicted-quality": "0.7500",
    "x-crossroads-predicted-cost-usd": "0.0000015",
}


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="client-key", max_retries=0, timeout=10)


def post(url: str, body: dict[str, Any], **headers: str) -> tuple[dict[str, str], bytes]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return {name.lower(): value for name, value in response.headers.items()}, response.read()


def datas(stream: bytes) -> list[Any]:
    """The data of every event; the format itself is checked on the way."""
    assert stream.endswith(b"\n\n")
    found = []
    for event in stream.decode().split("\n\n")[:-1]:
        assert event.startswith("data: ")
        assert "\n" not in event
        data = event.removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    return found


def test_the_official_client_gets_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="ok", messages=HELLO)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "ok"
    assert answer.usage is not None
    assert answer.usage.total_tokens == USAGE["total_tokens"]


def test_the_official_client_gets_a_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="ok", messages=HELLO, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {(c.id, c.created, c.model) for c in chunks} == {("chatcmpl-up", 1700000000, "ok")}


def test_a_stream_counts_tokens_in_its_last_chunk_when_asked(client: openai.OpenAI) -> None:
    *others, last = client.chat.completions.create(
        model="usage", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == USAGE["completion_tokens"]
    assert all(chunk.usage is None for chunk in others)


def test_usage_is_null_in_all_chunks_but_the_last(url: str) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    _, stream = post(url, {"model": "usage", "messages": HELLO, **options})
    *chunks, done = datas(stream)
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * (len(chunks) - 1) + [USAGE]


def test_a_stream_follows_the_conventions(url: str) -> None:
    headers, stream = post(url, {"model": "norole", "messages": HELLO, "stream": True})
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    *chunks, done = datas(stream)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_headers_tell_who_answered_and_why(url: str, stream: bool) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "1 + 1"}], "stream": stream}
    headers, _ = post(url, body, **{"x-request-id": "my-request-7"})
    assert {name: headers.get(name) for name in DECISION} == DECISION
    assert headers["x-request-id"] == "my-request-7"
    assert headers["x-crossroads-decision-id"].startswith("dec_")
    assert 0 < float(headers["x-crossroads-overhead-ms"]) < 1000
    assert headers["openai-processing-ms"].isdigit()


@pytest.mark.parametrize("stream", [False, True])
def test_time_spent_waiting_for_the_upstream_is_no_overhead(url: str, stream: bool) -> None:
    headers, _ = post(url, {"model": "slow-0.3", "messages": HELLO, "stream": stream})
    assert float(headers["x-crossroads-overhead-ms"]) < 300
    assert int(headers["openai-processing-ms"]) >= 300
    assert headers["x-crossroads-policy"] == "direct"


def test_every_request_gets_an_id_of_its_own(url: str) -> None:
    body = {"model": "ok", "messages": HELLO}
    first, second = post(url, body)[0], post(url, body, **{"x-request-id": "bad\u00e9 id"})[0]
    assert first["x-request-id"] != second["x-request-id"]
    assert second["x-request-id"].startswith("req_")


def test_the_last_user_message_is_routed(url: str, router: FakeRouter) -> None:
    parts = [
        {"type": "text", "text": "how much"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "text", "text": "is 2 + 2?"},
    ]
    messages = [
        {"role": "user", "content": "no digit here"},
        {"role": "assistant", "content": "indeed"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "let me"},
    ]
    headers, body = post(url, {"model": "auto", "messages": messages})
    assert router.asked[-1] == ("how much\nis 2 + 2?", None)
    assert json.loads(body)["model"] == headers["x-crossroads-model"] == "ok"


def test_a_rule_after_auto_goes_before_the_default(url: str, router: FakeRouter) -> None:
    headers, body = post(url, {"model": "auto:tradeoff:0.5", "messages": HELLO})
    assert router.asked[-1] == ("hello", "tradeoff:0.5")
    assert headers["x-crossroads-policy"] == "auto fake tradeoff:0.5"
    assert json.loads(body)["model"] == "usage"


def test_fields_unknown_to_the_gateway_reach_the_upstream_untouched(
    url: str, upstream: FakeUpstream
) -> None:
    extra = {
        "temperature": 0.25,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, None]}}}],
        "tomorrow's field": {"deep": ["\u00e9", 1.5, True]},
    }
    post(url, {"model": "renamed", "messages": HELLO, **extra})
    _, received = upstream.requests[-1]
    assert received == {"model": "ok", "messages": HELLO, **extra}


def test_the_clients_key_stays_here(
    client: openai.OpenAI, url: str, upstream: FakeUpstream
) -> None:
    client.chat.completions.create(model="ok", messages=HELLO)
    headers, _ = upstream.requests[-1]
    assert headers["Authorization"] == "Bearer upstream-key"
    assert "client-key" not in str(headers)
    client.chat.completions.create(model="renamed", messages=HELLO)
    assert "Authorization" not in upstream.requests[-1][0]


@pytest.mark.parametrize("stream", [False, True])
def test_of_the_clients_headers_traces_and_idempotency_keys_go_upstream(
    url: str, upstream: FakeUpstream, stream: bool
) -> None:
    passed_on = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=1,other=2",
        "OpenAI-Organization": "org-1",
        "OpenAI-Project": "proj-1",
    }
    kept = {"Authorization": "Bearer mine", "x-api-key": "mine", "cookie": "a=mine", "x-more": "1"}
    kept["Idempotency-Key"] = "retry-7"
    post(url, {"model": "ok", "messages": HELLO, "stream": stream}, **passed_on, **kept)
    received = {name.lower(): value for name, value in upstream.requests[-1][0].items()}
    assert {name: received.get(name.lower()) for name in passed_on} == passed_on
    assert received["authorization"] == "Bearer upstream-key"
    # one for each client, model and request: an upstream's account has all our clients
    assert len(received["idempotency-key"]) == 32
    assert not {"x-api-key", "cookie", "x-more"} & set(received)
    assert "mine" not in str(received)


def test_a_header_that_is_not_printable_ascii_does_not_go_upstream(
    url: str, upstream: FakeUpstream
) -> None:
    post(url, {"model": "ok", "messages": HELLO}, tracestate="caf\u00e9=1", traceparent="00-1")
    received = {name.lower(): value for name, value in upstream.requests[-1][0].items()}
    assert received.get("traceparent") == "00-1"
    assert "tracestate" not in received


def test_one_request_does_not_inherit_the_headers_of_another(
    url: str, upstream: FakeUpstream
) -> None:
    post(url, {"model": "ok", "messages": HELLO}, traceparent="00-1")
    post(url, {"model": "ok", "messages": HELLO})
    assert "traceparent" not in {name.lower() for name in upstream.requests[-1][0]}


def parse(body: bytes) -> object:
    return ChatSurface().parse(body, client=ANYBODY, headers={})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "ok", "messages": [', None),
        (b"\xff", None),
        (b"", None),
        (b"[1]", None),
        (b'"hello"', None),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "model"),
        (b'{"model": 7, "messages": [{"role": "user", "content": "x"}]}', "model"),
        (b'{"model": "ok"}', "messages"),
        (b'{"model": "ok", "messages": []}', "messages"),
        (b'{"model": "ok", "messages": "hello"}', "messages"),
        (b'{"model": "ok", "messages": ["hello"]}', "messages[0]"),
        (b'{"model": "ok", "messages": [{}], "stream": "yes"}', "stream"),
    ],
)
def test_a_malformed_request_is_refused_with_its_place(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        parse(body)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert "\n" not in str(refused.value)


def test_a_message_tells_what_came_instead() -> None:
    with pytest.raises(ApiError, match=r"^'messages' must be a list .*, got an empty list\.$"):
        parse(b'{"model": "ok", "messages": []}')
    with pytest.raises(ApiError, match="got nothing"):
        parse(b'{"messages": []}')
    with pytest.raises(ApiError, match="got a number"):
        parse(b"7")
