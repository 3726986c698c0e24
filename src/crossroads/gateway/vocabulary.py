"""Words of the APIs that several rooms read: stop reasons, token counts, what a failure costs.

Engine, dialects and upstreams all meet them; none of these rooms may import another for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crossroads.gateway.call import Dialect
from crossroads.gateway.contracts import Usage
from crossroads.prompts.experts.base import ExpertError

FINISH_OF = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""The ``finish_reason`` of ``chat`` by the ``stop_reason`` of ``messages``."""

STOP_OF = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""The other way round; a stop sequence is ``stop`` in ``chat``, too."""

ENDED = frozenset({*FINISH_OF, *STOP_OF, "eos", "eos_token"}) - {
    *("length", "max_tokens", "model_context_window_exceeded", "content_filter", "refusal")
}
"""Reasons for which an answer is whole, in the words of all servers we know (TGI's among them)."""

BROKEN_OFF = frozenset({"abort", "error"})
"""Reasons by which servers (vLLM, SGLang) say that they gave an answer up: it is a failure."""

NEVER_PASSED = frozenset(
    {
        *("authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key"),
        *("cookie", "host", "connection", "content-length", "content-type", "transfer-encoding"),
        *("accept-encoding", "expect", "keep-alive", "te", "trailer", "upgrade"),
    }
)
"""Headers of a client that no upstream gets: keys, and what belongs to one connection."""

_MOST_TOKENS = 1_000_000_000  # of one answer: a larger count is a defect of whoever counted


class SpentError(ExpertError):
    """A failure of an upstream that had the whole request, and may bill what it did with it.

    Attributes
    ----------
    usage : what it told; None where it told nothing
    """

    def __init__(self, message: str, *, usage: Usage | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.usage = usage


def usage_of(dialect: Dialect, given: Any) -> Usage | None:
    """Read the usage object of an answer; None where it tells nothing that can be true."""
    return _USAGES[dialect](given)


def chat_usage(given: Any) -> Usage | None:
    """Read the usage object of ``chat``, ``completions`` and ``embeddings``."""
    if given.__class__ is not dict:
        return None
    return _usage(given.get("prompt_tokens"), given.get("completion_tokens", 0))


def messages_usage(given: Any) -> Usage | None:
    """Read the usage object of ``messages``; tokens read from or written to a cache are input."""
    if given.__class__ is not dict:
        return None
    inputs = given.get("input_tokens")
    if inputs.__class__ is not int or inputs < 0:
        return None
    for kind in ("read", "creation"):
        cached = given.get(f"cache_{kind}_input_tokens")
        if cached.__class__ is int:
            if cached < 0:
                return None
            inputs += cached
    return _usage(inputs, given.get("output_tokens", 0))


def responses_usage(given: Any) -> Usage | None:
    """Read the usage object of ``responses``."""
    if given.__class__ is not dict:
        return None
    return _usage(given.get("input_tokens"), given.get("output_tokens", 0))


def _usage(inputs: Any, outputs: Any) -> Usage | None:
    """Some servers send ``{}``, null or nonsense for counts, which tells nothing."""
    if inputs.__class__ is not int or outputs.__class__ is not int:
        return None
    if not (0 <= inputs <= _MOST_TOKENS and 0 <= outputs <= _MOST_TOKENS):
        return None
    return Usage(inputs, outputs)


_USAGES: dict[Dialect, Callable[[Any], Usage | None]] = {
    "chat": chat_usage,
    "completions": chat_usage,
    "embeddings": chat_usage,
    "responses": responses_usage,
    "messages": messages_usage,
}
