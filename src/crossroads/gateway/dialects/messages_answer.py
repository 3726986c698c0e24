"""Whole answers between the dialects ``chat`` and ``messages``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import orjson

from crossroads.gateway.call import Body
from crossroads.gateway.dialects.understanding import reads_answers
from crossroads.gateway.vocabulary import ENDED, FINISH_OF, STOP_OF, messages_usage


def finish_reason(stop_reason: Any) -> str | None:
    """Return the ``finish_reason`` of a ``stop_reason``; an unknown one as it is, None for none."""
    return FINISH_OF.get(stop_reason, stop_reason) if isinstance(stop_reason, str) else None


def stop_reason(finish: Any, stop_sequence: Any = None) -> str:
    """Return the ``stop_reason`` of a ``finish_reason``.

    An unknown one is ``max_tokens``, so that nothing cut short looks whole. None is ``end_turn``:
    the API demands a reason, and the upstream did say that the answer is over.
    """
    if finish == "stop" and isinstance(stop_sequence, str):
        return "stop_sequence"
    if not isinstance(finish, str):
        return "end_turn"
    return STOP_OF.get(finish, "end_turn" if finish in ENDED else "max_tokens")


def new_message_id() -> str:
    return f"msg_{os.urandom(12).hex()}"


def told_in_chat(usage: Any) -> Body:
    """Return the field ``usage`` of ``chat``, or nothing where ``usage`` tells nothing.

    Tokens read from and written to a cache are input, too.
    """
    if messages_usage(usage) is None:
        return {}
    read = _count(usage.get("cache_read_input_tokens"))
    written = _count(usage.get("cache_creation_input_tokens"))
    prompt = _count(usage.get("input_tokens")) + read + written
    output = _count(usage.get("output_tokens"))
    counts: Body = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    if read or written:
        counts["prompt_tokens_details"] = {"cached_tokens": read, "cache_write_tokens": written}
    thinking = _count(_of(usage, "output_tokens_details", "thinking_tokens"))
    if thinking:
        counts["completion_tokens_details"] = {"reasoning_tokens": thinking}
    return {"usage": counts}


def to_messages_usage(usage: Any) -> Body:
    """Return a ``messages`` usage object; zeros where ``usage`` says nothing."""
    given = usage if isinstance(usage, Mapping) else {}
    read = _count(_of(given, "prompt_tokens_details", "cached_tokens"))
    written = _count(_of(given, "prompt_tokens_details", "cache_write_tokens"))
    counts: Body = {
        "input_tokens": max(0, _count(given.get("prompt_tokens")) - read - written),
        "output_tokens": _count(given.get("completion_tokens")),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
    }
    thinking = _count(_of(given, "completion_tokens_details", "reasoning_tokens"))
    if thinking:
        counts["output_tokens_details"] = {"thinking_tokens": thinking}
    return counts


def _of(usage: Mapping[str, Any], name: str, part: str) -> Any:
    details = usage.get(name)
    return details.get(part) if isinstance(details, Mapping) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


@reads_answers
def from_messages_answer(answer: Body) -> Body:
    """Translate a message into a ``chat.completion``.

    Thinking becomes ``reasoning_content``, and ``thinking_blocks`` as the API wants it back.
    """
    texts: list[str] = []
    thoughts: list[str] = []
    thinking: list[Body] = []
    calls: list[Body] = []
    for block in answer.get("content") or ():
        kind = block.get("type")
        if kind == "text":
            texts.append(block.get("text") or "")
        elif kind == "tool_use":
            arguments = orjson.dumps(block.get("input") or {}).decode()
            calls.append(function_call(block.get("id"), block.get("name"), arguments))
        elif kind in ("thinking", "redacted_thinking"):
            thinking.append(block)
            thoughts.append(block.get("thinking") or "")
    message: Body = {"role": "assistant", "content": "".join(texts) if texts else None}
    if calls:
        message["tool_calls"] = calls
    elif not texts:
        message["content"] = ""
    if thinking:
        message["reasoning_content"] = "".join(thoughts)
        message["thinking_blocks"] = thinking
    choice: Body = {
        "index": 0,
        "message": message,
        "finish_reason": finish_reason(answer.get("stop_reason")),
    }
    if answer.get("stop_sequence") is not None:
        choice["stop_reason"] = answer["stop_sequence"]
    return {
        "id": answer.get("id"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer.get("model"),
        "choices": [choice],
        **told_in_chat(answer.get("usage")),
    }


def function_call(id: Any, name: Any, arguments: str) -> Body:
    """Return a tool call of ``chat``."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@reads_answers
def to_messages_answer(answer: Body, model: str) -> Body:
    """Translate a ``chat.completion`` into a message; of several choices, the first."""
    choices = answer.get("choices") or [{}]
    choice = choices[0]
    message = choice.get("message") or {}
    finish = choice.get("finish_reason")
    sequence = choice.get("stop_reason") if isinstance(choice.get("stop_reason"), str) else None
    reason = stop_reason(finish, sequence)
    content = _content(message)
    if message.get("refusal") and reason == "end_turn":
        reason = "refusal"
    if finish == "stop" and any(block["type"] == "tool_use" for block in content):
        reason = "tool_use"  # a named function ends with "stop" in chat
    return {
        "id": new_message_id(),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence if reason == "stop_sequence" else None,
        "usage": to_messages_usage(answer.get("usage")),
    }


def _content(message: Mapping[str, Any]) -> list[Body]:
    blocks: list[Body] = []
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if message.get("thinking_blocks"):
        blocks += message["thinking_blocks"]
    elif reasoning:
        blocks.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    text = message.get("content") or message.get("refusal")
    if isinstance(text, str):
        blocks.append({"type": "text", "text": text})
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id"),
                "name": function.get("name"),
                "input": arguments_of(function.get("arguments")),
            }
        )
    return blocks


def arguments_of(text: Any) -> Body:
    """Return the arguments a model wrote; what is no JSON object is kept under ``_raw``.

    ``messages`` has no place for a malformed call, and dropping it would change the answer.
    """
    if not text:
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {"_raw": text}
    return value if isinstance(value, dict) else {"_raw": text}
