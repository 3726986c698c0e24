"""Answers as bytes: what is kept of one, and whether it may be."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson

from crossroads.gateway.call import Body, Call, Dialect
from crossroads.gateway.contracts import Kept, Tally

_WHOLE = frozenset({"stop", "length", "end_turn", "stop_sequence", "max_tokens"})
_CALLS = frozenset({"tool_calls", "function_call", "tool_use"})


def pack(call: Call, tally: Tally, *, tool_calls: bool) -> bytes | None:
    """Return the bytes of a complete answer; None where it is not to be kept.

    Not kept: answers that are cut off, refused by a filter, end for no reason that was told, or,
    unless ``tool_calls``, that call tools: a call kept and replayed would be carried out again.
    """
    answer = tally.answer
    if not tally.is_complete or answer is None or "error" in answer:
        return None
    if tally.dialect not in ("chat", call.dialect):
        return None
    if tally.dialect != "embeddings" and not _is_wanted(answer, tally.finish, tool_calls):
        return None
    head = {"model": tally.model, "dialect": tally.dialect, "at": time.time()}
    try:
        return orjson.dumps(head) + b"\n" + orjson.dumps(answer)
    except TypeError:
        return None


def unpack(data: bytes) -> tuple[str, Dialect, float, Body] | None:
    """Return model, dialect, Unix time and answer; None for bytes that ``pack`` did not write."""
    head, _, body = data.partition(b"\n")
    try:
        facts, answer = orjson.loads(head), orjson.loads(body)
        model, dialect, at = facts["model"], facts["dialect"], float(facts["at"])
    except (ValueError, TypeError, KeyError):
        return None
    return (model, dialect, at, answer) if isinstance(answer, dict) else None


def kept_from(data: bytes, call: Call, *, kind: str, similarity: float = 1.0) -> Kept | None:
    """Return a kept answer where it can be given to this call, else None.

    Events are made from answers in ``chat`` only, and without log probabilities.
    """
    found = unpack(data)
    if found is None:
        return None
    model, dialect, at, answer = found
    if dialect != "chat":
        if dialect != call.dialect or call.is_stream:
            return None
    elif call.is_stream and call.body.get("logprobs"):
        return None
    return Kept(
        model=model,
        dialect=dialect,
        answer=answer,
        kind=kind,
        similarity=similarity,
        age_s=max(0.0, time.time() - at),
    )


def _is_wanted(answer: Body, finish: str | None, tool_calls: bool) -> bool:
    if finish in _CALLS or _calls_tools(answer):
        return tool_calls
    return finish in _WHOLE


def _calls_tools(answer: Mapping[str, Any]) -> bool:
    for choice in answer.get("choices") or ():
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict) and (
            message.get("tool_calls") or message.get("function_call")
        ):
            return True
    items = answer.get("output") or answer.get("content") or ()
    return isinstance(items, list) and any(
        isinstance(item, dict)
        and (item.get("type") == "tool_use" or str(item.get("type")).endswith("_call"))
        for item in items
    )
