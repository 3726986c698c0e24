"""Records for the tests of the ledger."""

from __future__ import annotations

import os
import time
from typing import Any

from crossroads.gateway.contracts import Record


def record(decision_id: str | None = None, **changes: Any) -> Record:
    """Return a record of an answered call of a learned policy."""
    facts: dict[str, Any] = {
        "decision_id": decision_id or f"dec_{os.urandom(16).hex()}",
        "request_id": "req_1",
        "time": time.time(),
        "key_id": "key-a",
        "asked": "auto",
        "policy": "auto",
        "version": "v1",
        "rule": "argmax",
        "chosen": "small",
        "model": "small",
        "status": 200,
        "is_complete": True,
        "finish": "stop",
        "attempts": [("small", 200, "", 0.25)],
        "scores": {"small": 0.5, "large": 0.8},
        "costs": {"small": 0.001, "large": 0.01},
        "predicted_cost_usd": 0.001,
        "input_tokens": 12,
        "output_tokens": 34,
        "cost_usd": 0.001,
        "total_ms": 250.0,
        "upstream_ms": 240.0,
    }
    return Record(**{**facts, **changes})
