"""Calls and answers for the caches."""

from __future__ import annotations

from typing import Any

from crossroads.gateway.call import Call, Client
from crossroads.gateway.contracts import Tally, Usage
from crossroads.prompts.experts.base import completion, usage_of

ALICE = Client(key_id="alice", team="red")
ANN = Client(key_id="ann", team="red")
BOB = Client(key_id="bob", team="blue")


def asked(
    text: str = "What is the capital of France?",
    *,
    model: str = "auto",
    client: Client = ALICE,
    is_stream: bool = False,
    headers: dict[bytes, bytes] | None = None,
    messages: list[Any] | None = None,
    **fields: Any,
) -> Call:
    """Return a call in ``chat``."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": text}] if messages is None else messages,
        **fields,
    }
    if is_stream:
        body["stream"] = True
    return Call(
        dialect="chat",
        model=model,
        body=body,
        client=client,
        is_stream=is_stream,
        headers=headers or {},
        size=len(str(body)),
    )


def told(text: str = "Paris.", *, model: str = "small", **changes: Any) -> Tally:
    """Return a complete answer in ``chat``."""
    tally = Tally(
        model=model,
        usage=Usage(7, 3),
        finish="stop",
        is_complete=True,
        text=text,
        answer=completion(text, model=model, usage=usage_of(7, 3)),
    )
    for name, value in changes.items():
        setattr(tally, name, value)
    return tally
