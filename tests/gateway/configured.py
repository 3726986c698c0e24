"""A gateway made from a configuration file, and requests to it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from crossroads.gateway.config import read_config
from crossroads.gateway.runtime import Runtime
from tests.gateway.fake_upstream import FakeUpstream

HELLO = [{"role": "user", "content": "hello there"}]
KEYS = {"mine": "sk-test-0123456789abcdef", "other": "sk-test-fedcba9876543210"}


def write(folder: Path, upstream: FakeUpstream, **fields: Any) -> Path:
    models = [
        {"name": name, "endpoint": upstream.url, "price_in": 1.0, "price_out": 2.0}
        for name in ("ok", "usage", "trickle-1")
    ]
    pool = folder / "pool.json"
    pool.write_text(json.dumps({"name": "fake", "models": models}), "utf-8")
    settings = {
        "pool": str(pool),
        "policies": {"auto": {"kind": "split", "weights": {"ok": 1}}},
        "ledger": {"url": f"sqlite:{folder / 'ledger.db'}", "flush_ms": 10, "keep": ["text"]},
        "governance": {"keys": [{"name": n, "secret": s} for n, s in KEYS.items()]},
        "telemetry": {"logs": None},
        "admin": None,
        "watch_s": 0.05,
        **fields,
    }
    path = folder / "gateway.json"
    path.write_text(json.dumps(settings), "utf-8")  # JSON is YAML, too
    return path


def runtime_of(path: Path) -> Runtime:
    return Runtime(read_config(path), read=partial(read_config, path), path=path)


def call(
    url: str, method: str, path: str, body: Any = None, *, key: str = "mine", **headers: str
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    data = None if body is None else json.dumps(body)
    given = {"authorization": f"Bearer {KEYS[key]}", **headers}
    try:
        connection.request(method, path, data, given)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        raw = response.read()
        is_json = found.get("content-type", "").startswith("application/json")
        return response.status, found, json.loads(raw) if is_json else raw
    finally:
        connection.close()


def ask(url: str, model: str = "auto", **fields: Any) -> tuple[int, dict[str, str], Any]:
    return call(url, "POST", "/v1/chat/completions", {"model": model, "messages": HELLO, **fields})


def until(found: Callable[[], Any], seconds: float = 5.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")


def decision(url: str, decision_id: str) -> Any:
    status, _, row = call(url, "GET", f"/v1/decisions/{decision_id}")
    return row if status == 200 else None
