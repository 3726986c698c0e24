"""Going on with a stream that broke: who can, and what they are asked.

The next model gets the request with the text so far as a last message of the assistant (a prefill),
which it continues. A stream that broke before any text needs no prefill: it is begun anew, and the
client does not see its opening twice. In ``completions`` the text so far simply joins the prompt.

Not continued: tool calls, thoughts, more than one choice, ``responses``, and whatever was already
finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from crossroads.gateway.call import Body, Dialect
from crossroads.gateway.contracts import Order
from crossroads.gateway.engine.answers import tokens_of
from crossroads.gateway.engine.fleet import Fleet, Stop
from crossroads.gateway.engine.readers import Reader

_LIMITS = ("max_tokens", "max_completion_tokens")
_NOT_PREFIXED = ("echo", "suffix", "best_of", "logprobs")  # of completions: no plain continuation
_ONCE = b"idempotency-key"  # names the first request; a continued one is another


def can_continue(order: Order, reader: Reader) -> bool:
    """Whether a broken answer may be continued at all."""
    body = order.body
    if not reader.is_plain or reader.finish is not None or body.get("n") not in (None, 1):
        return False
    if order.dialect == "completions":
        is_text = isinstance(body.get("prompt"), str)
        return is_text and not any(body.get(name) for name in _NOT_PREFIXED)
    return order.dialect in ("chat", "messages")


def continued_stops(fleet: Fleet, order: Order, names: Sequence[str], text: str) -> list[Stop]:
    """Return who goes on after ``text``, each with its order.

    ``names`` are the models of the choice in the order in which they shall be asked.
    """
    able = fleet.speakers(names, order.dialect)
    # Some servers refuse a prefill that ends in white space; the splice cuts what is given again.
    sent = text.rstrip()
    if sent and order.dialect != "completions":
        able = [name for name in able if name in fleet.prefills]
    headers = [(name, value) for name, value in order.headers if name != _ONCE]
    body = _continued(order.dialect, order.body, sent) if sent else dict(order.body)
    fields = fleet.settings.continuation.fields if sent else {}
    return [
        Stop(name, replace(order, body={**body, **fields.get(name, {})}, headers=headers))
        for name in able
    ]


def _continued(dialect: Dialect, body: Mapping[str, Any], sent: str) -> Body:
    shorter = {
        name: max(1, body[name] - tokens_of(len(sent)))
        for name in _LIMITS
        if isinstance(body.get(name), int)
    }
    if dialect == "completions":
        return {**body, **shorter, "prompt": body["prompt"] + sent}
    return {**body, **shorter, "messages": _prefilled(body["messages"], sent)}


def _prefilled(messages: Sequence[Mapping[str, Any]], sent: str) -> list[Mapping[str, Any]]:
    """Add the text so far; a prefill of the client's own goes on in the same message."""
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and isinstance(last.get("content"), str):
        return [*messages[:-1], {**last, "content": last["content"] + sent}]
    return [*messages, {"role": "assistant", "content": sent}]
