"""What a whole answer says, in each dialect: its text, why it ended, what it used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from crossroads.gateway.call import Body, Call, Dialect
from crossroads.gateway.contracts import Usage
from crossroads.gateway.vocabulary import (
    FINISH_OF,
    SpentError,
    chat_usage,
    messages_usage,
    responses_usage,
)
from crossroads.prompts.experts.base import ExpertError

_CHARACTERS_PER_TOKEN = 4  # of English text, by the vendors' own rule of thumb


class Facts(NamedTuple):
    """Of one answer. ``size``: characters it consists of, tool calls and thoughts included."""

    text: str
    finish: str | None
    usage: Usage | None
    size: int


def read_answer(dialect: Dialect, answer: Body) -> Facts | None:
    """Return what a whole answer says; None for one that holds no answer at all."""
    try:
        return _READERS[dialect](answer)
    except (AttributeError, IndexError, KeyError, TypeError):  # texts where objects should be
        return None


def estimate(call: Call, size: int) -> Usage:
    """Return what an answer of ``size`` characters probably used."""
    return Usage(call.input_tokens, tokens_of(size), True)


def spent(call: Call, error: ExpertError) -> Usage | None:
    """Return what a failed attempt is billed: nothing unless the upstream had the request.

    As told, else the prompt: what the upstream made of it nobody got to see.
    """
    if not isinstance(error, SpentError):
        return None
    return error.usage or estimate(call, 0)


def tokens_of(size: int) -> int:
    """Return the tokens in so many characters, about; none in none."""
    return -(-size // _CHARACTERS_PER_TOKEN)


def total(parts: list[Usage]) -> Usage | None:
    """Add up; None for nothing."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return Usage(
        sum(part.input_tokens for part in parts),
        sum(part.output_tokens for part in parts),
        any(part.is_estimated for part in parts),
    )


def messages_finish(reason: Any) -> str | None:
    """Return a stop reason of ``messages`` in the words of ``chat``."""
    return None if reason is None else FINISH_OF.get(str(reason), str(reason))


def responses_finish(response: Mapping[str, Any]) -> str | None:
    """Return why a response ended, in the words of ``chat``; None while it did not."""
    status = response.get("status")
    if status == "incomplete":
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return "content_filter" if reason == "content_filter" else "length"
    if status != "completed":
        return None
    items = _dicts(response.get("output"))
    return "tool_calls" if any(i.get("type") == "function_call" for i in items) else "stop"


def _chat(answer: Body) -> Facts | None:
    choices = answer.get("choices")
    if not choices:
        return None
    choice = choices[0]
    message = choice.get("message") or {}
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    usage = chat_usage(answer.get("usage"))
    size = 0 if usage is not None else sum(_size(c.get("message")) for c in _dicts(choices))
    return Facts(text, choice.get("finish_reason"), usage, size)


def _completions(answer: Body) -> Facts | None:
    choices = _dicts(answer.get("choices"))
    if not choices:
        return None
    texts = [str(choice.get("text") or "") for choice in choices]
    usage = chat_usage(answer.get("usage"))
    return Facts(texts[0], choices[0].get("finish_reason"), usage, sum(map(len, texts)))


def _responses(answer: Body) -> Facts | None:
    items = _dicts(answer.get("output"))
    if not items and answer.get("status") != "incomplete":
        return None
    parts = [part for item in items for part in _dicts(item.get("content"))]
    text = "".join(str(p.get("text") or "") for p in parts if p.get("type") == "output_text")
    size = len(text) + sum(len(str(item.get("arguments") or "")) for item in items)
    return Facts(text, responses_finish(answer), responses_usage(answer.get("usage")), size)


def _messages(answer: Body) -> Facts | None:
    blocks = answer.get("content")
    if not isinstance(blocks, list):
        return None
    text = "".join(str(b.get("text") or "") for b in _dicts(blocks) if b.get("type") == "text")
    finish = messages_finish(answer.get("stop_reason"))
    return Facts(text, finish, messages_usage(answer.get("usage")), _size(blocks))


def _embeddings(answer: Body) -> Facts | None:
    if not answer.get("data"):
        return None
    return Facts("", "stop", chat_usage(answer.get("usage")), 0)


_READERS: dict[Dialect, Callable[[Body], Facts | None]] = {
    "chat": _chat,
    "completions": _completions,
    "responses": _responses,
    "messages": _messages,
    "embeddings": _embeddings,
}


def _dicts(given: Any) -> list[dict[str, Any]]:
    return [entry for entry in given if isinstance(entry, dict)] if isinstance(given, list) else []


def _size(value: Any) -> int:
    """Characters of all texts inside plain data."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_size(entry) for key, entry in value.items() if key not in ("role", "type"))
    return sum(map(_size, value)) if isinstance(value, list) else 0
