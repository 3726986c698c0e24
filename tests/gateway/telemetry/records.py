"""Records as the pipeline would make them."""

from __future__ import annotations

from typing import Any

from crossroads.gateway.contracts import Record


def record(**changes: Any) -> Record:
    """Return a good chat call answered by ``a``, with some fields changed."""
    fields: dict[str, Any] = {
        "decision_id": "dec_1",
        "request_id": "req_1",
        "time": 1_790_000_000.0,
        "key_id": "team-key",
        "policy": "auto",
        "asked": "auto",
        "chosen": "a",
        "model": "a",
        "status": 200,
        "is_complete": True,
        "finish": "stop",
        "attempts": [("a", 200, "", 0.5)],
        "input_tokens": 100,
        "output_tokens": 30,
        "cost_usd": 0.002,
        "queue_ms": 0.02,
        "route_ms": 0.1,
        "connect_ms": 1.0,
        "upstream_ms": 500.0,
        "relay_ms": 0.1,
        "total_ms": 501.22,
    }
    return Record(**{**fields, **changes})
