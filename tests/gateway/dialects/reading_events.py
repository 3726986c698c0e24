"""What tests read from event streams."""

from __future__ import annotations

from typing import Any

import orjson


def events_of(raw: bytes) -> list[tuple[str, Any]]:
    """Return name and data of each event; ``[DONE]`` stays text."""
    events = []
    for block in raw.decode().split("\n\n")[:-1]:
        name, data = "", ""
        for line in block.split("\n"):
            field, _, value = line.partition(": ")
            name, data = (value, data) if field == "event" else (name, value)
        events.append((name, data if data == "[DONE]" else orjson.loads(data)))
    assert raw.endswith(b"\n\n") or not raw
    return events


def data_of(raw: bytes) -> list[Any]:
    """Return the data of each event, whose name, if any, must be its type."""
    events = events_of(raw)
    assert all(not name or name == data["type"] for name, data in events)
    return [data for _, data in events]
