"""What upstreams are asked, and how they answer, in tests."""

from __future__ import annotations

from typing import Any

import orjson

HELLO: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


def chat_chunk(text: str | None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: %s\n\n" % orjson.dumps({"id": "c", "object": "x", "choices": [choice]})


def chat_answer(text: str = "hi") -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return orjson.dumps({"id": "c", "choices": [choice], "extra": {"kept": True}})
