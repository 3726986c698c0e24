from __future__ import annotations

from typing import Any

import orjson
import pytest

from crossroads.gateway.call import ANYBODY, Call
from crossroads.gateway.dialects import CompletionsSurface
from crossroads.gateway.errors import ApiError
from tests.gateway.dialects.canned import USAGE, answer, chunks
from tests.gateway.dialects.reading_events import events_of

SURFACE = CompletionsSurface()
LOGPROBS = {
    "content": [
        {"token": "Hi", "logprob": -0.5, "top_logprobs": [{"token": "Hi", "logprob": -0.5}]},
        {"token": "!", "logprob": -1.0, "top_logprobs": []},
    ]
}


def call(**fields: Any) -> Call:
    body = {"model": "auto", "prompt": "Once", **fields}
    return SURFACE.parse(orjson.dumps(body), client=ANYBODY, headers={})


def test_a_prompt_becomes_a_message_and_the_request_is_kept() -> None:
    asked = call(prompt=["Once"], logprobs=2, max_tokens=5, echo=False)
    assert asked.body == {
        "model": "auto",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "Once"}],
        "logprobs": True,
        "top_logprobs": 2,
    }
    assert asked.native is not None and asked.native["prompt"] == ["Once"]
    assert asked.text == "Once"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"stream": 1}, "stream"),
    ],
)
def test_what_a_chat_model_cannot_do_is_refused(fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as raised:
        call(**fields)
    assert (raised.value.status, raised.value.param) == (400, param)


def test_an_answer_of_chat_becomes_a_text() -> None:
    given = answer("text")
    given["choices"][0]["logprobs"] = LOGPROBS
    rendered = orjson.loads(SURFACE.render(call(echo=True), "m", "chat", given))
    assert (rendered["object"], rendered["model"]) == ("text_completion", "m")
    assert rendered["usage"] == USAGE
    choice = rendered["choices"][0]
    assert choice["text"] == "OnceHello, world \u2603" and choice["finish_reason"] == "stop"
    assert choice["logprobs"] == {
        "tokens": ["Hi", "!"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"Hi": -0.5}, {}],
        "text_offset": [0, 2],
    }


def test_a_native_answer_is_only_renamed() -> None:
    native = {"id": "cmpl-1", "created": 1, "choices": [{"text": "x", "new": 1}], "usage": {}}
    rendered = orjson.loads(SURFACE.render(call(), "m", "completions", native))
    assert rendered == {**native, "object": "text_completion", "model": "m"}


def test_a_stream_of_chat_becomes_texts_and_token_counts_come_last() -> None:
    asked = call(stream=True, echo=True, stream_options={"include_usage": True})
    writer = SURFACE.writer(asked, "m", "chat")
    events = [data for _, data in events_of(writer.feed(chunks("text")) + writer.end())]
    *texts, last, done = events
    assert "".join(e["choices"][0]["text"] for e in texts) == "OnceHello, world \u2603"
    assert texts[-1]["choices"][0]["finish_reason"] == "stop"
    assert [e["usage"] for e in texts] == [None] * len(texts)
    assert (last["choices"], last["usage"], done) == ([], USAGE, "[DONE]")
    assert {e["id"] for e in events[:-1]} == {"chatcmpl-1"}


def test_a_native_stream_passes() -> None:
    choice = {"index": 0, "text": "x", "finish_reason": None, "new": 1}
    writer = SURFACE.writer(call(stream=True), "m", "completions")
    raw = writer.feed([{"id": "cmpl-1", "created": 1, "model": "up", "choices": [choice]}])
    (_, first), (_, done) = events_of(raw + writer.end())
    identity = {"id": "cmpl-1", "created": 1, "model": "m", "object": "text_completion"}
    assert first == {**identity, "choices": [choice]} and done == "[DONE]"


def test_a_failure_says_nothing_of_an_end() -> None:
    writer = SURFACE.writer(call(stream=True), "m", "chat")
    raw = writer.feed(chunks("text")[:3]) + writer.fail(ApiError("cut", status=502))
    assert events_of(raw)[-1][1]["error"]["message"] == "cut" and b"[DONE]" not in raw
