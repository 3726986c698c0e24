"""Answers of ``chat`` as objects of the dialect ``responses``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from crossroads.gateway.call import Body
from crossroads.gateway.vocabulary import ENDED

_ECHOED: Body = {  # fields of the request that the answer repeats, and what they default to
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": None,
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


def new_response(request: Mapping[str, Any], model: str) -> Body:
    """Return a response that has just begun."""
    response: Body = {
        "id": f"resp_{os.urandom(24).hex()}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
    }
    for name, default in _ECHOED.items():
        value = request.get(name)
        response[name] = default if value is None else value
    return response


def finished(response: Body, output: list[Body], finish: Any, usage: Any) -> Body:
    """Return the response at its end: ``completed``, or ``incomplete`` where it was cut short."""
    reason = why_incomplete(finish)
    return {
        **response,
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "output": output,
        "usage": to_responses_usage(usage),
    }


def why_incomplete(finish: Any) -> str | None:
    """Return what the API calls a ``finish_reason`` of an answer that was cut short.

    None for an answer that is whole, or that its upstream gave no reason for. An unknown reason is
    ``max_output_tokens``, so that nothing cut short looks whole.
    """
    if not isinstance(finish, str) or finish in ENDED:
        return None
    return "content_filter" if finish == "content_filter" else "max_output_tokens"


def failed(response: Body, output: list[Body], *, code: str, message: str) -> Body:
    """Return the response after a failure."""
    error = {"code": code, "message": message}
    return {**response, "status": "failed", "error": error, "output": output}


def to_responses_answer(answer: Body, request: Mapping[str, Any], model: str) -> Body:
    """Translate a ``chat.completion`` into a response; of several choices, the first."""
    choices = answer.get("choices") or [{}]
    choice = choices[0]
    response = new_response(request, model)
    finish = choice.get("finish_reason")
    status = "incomplete" if why_incomplete(finish) else "completed"
    tag = response["id"][-16:]
    output = _output(choice.get("message") or {}, choice.get("logprobs"), status, tag)
    return finished(response, output, finish, answer.get("usage"))


def _output(message: Mapping[str, Any], logprobs: Any, status: str, tag: str) -> list[Body]:
    items: list[Body] = []
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thoughts, str) and thoughts:
        items.append(reasoning_item(f"rs_{tag}{len(items)}", thoughts))
    parts: list[Body] = []
    text, refusal = message.get("content"), message.get("refusal")
    calls = message.get("tool_calls") or ()
    if isinstance(text, str) and (text or not (refusal or calls)):
        parts.append(text_part(text, logprobs_of(logprobs)))
    if refusal:
        parts.append({"type": "refusal", "refusal": refusal})
    if parts:
        items.append(message_item(f"msg_{tag}{len(items)}", parts, status))
    for call in calls:
        function = call.get("function") or {}
        arguments = function.get("arguments") or ""
        name = function.get("name") or ""
        id = f"fc_{tag}{len(items)}"
        items.append(call_item(id, call.get("id") or id, name, arguments, status))
    return items


def reasoning_item(id: str, text: str, status: str = "completed") -> Body:
    """Return an item with the thoughts of a model."""
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"id": id, "type": "reasoning", "summary": [], "content": content, "status": status}


def message_item(id: str, parts: list[Body], status: str) -> Body:
    """Return an item with a message of the assistant."""
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": parts}


def text_part(text: str, logprobs: list[Body]) -> Body:
    """Return the part of a message that is text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def call_item(id: str, call_id: str, name: str, arguments: str, status: str) -> Body:
    """Return an item with a call of a function."""
    return {
        "id": id,
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def logprobs_of(given: Any) -> list[Body]:
    """Return the log probabilities of a choice of ``chat``."""
    content = given.get("content") if isinstance(given, dict) else None
    return content if isinstance(content, list) else []


def to_responses_usage(usage: Any) -> Body | None:
    """Return the usage object; None where the upstream did not count."""
    if not isinstance(usage, Mapping):
        return None
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    prompt_details = usage.get("prompt_tokens_details")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": _count(prompt_details, "cached_tokens"),
            "cache_write_tokens": _count(prompt_details, "cache_write_tokens"),
        },
        "output_tokens": completion,
        "output_tokens_details": {
            "reasoning_tokens": _count(usage.get("completion_tokens_details"), "reasoning_tokens")
        },
        "total_tokens": _count(usage, "total_tokens") or prompt + completion,
    }


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, Mapping) else None
    return value if isinstance(value, int) else 0
