"""Event streams as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from crossroads.gateway.call import Event

DONE = b"data: [DONE]\n\n"


def unnamed(data: Any) -> bytes:
    """Return one event of the APIs whose events have no names."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def named(event: Event) -> bytes:
    """Return one event that is named as its ``type`` says."""
    name = str(event.get("type", "message")).encode()
    return b"event: " + name + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def all_named(events: Sequence[Event]) -> bytes:
    """Return the bytes of named events."""
    return b"".join([named(event) for event in events])
