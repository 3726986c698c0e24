"""Requests that come again under their idempotency key, at a whole gateway."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gateway.configured import HELLO, call, runtime_of, write
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.serving import serving_runtime


def test_a_repeated_idempotency_key_is_answered_once(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    body = {"model": "ok", "messages": HELLO}
    key = {"Idempotency-Key": "order-7"}
    before = len(upstream.requests)
    with serving_runtime(runtime_of(write(tmp_path, upstream))) as url:
        first = call(url, "POST", "/v1/chat/completions", body, **key)
        again = call(url, "POST", "/v1/chat/completions", body, **key)
        assert len(upstream.requests) == before + 1
        assert first[2] == again[2]
        assert again[1]["x-crossroads-replayed"] == "true"
        assert first[1]["x-crossroads-decision-id"] == again[1]["x-crossroads-decision-id"]
        changed = {**body, "temperature": 0.5}
        assert call(url, "POST", "/v1/chat/completions", changed, **key)[0] == 422
        assert len(upstream.requests) == before + 1


def test_an_idempotency_key_holds_for_one_value_of_every_header_that_decides(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    rule = {"when": {"headers": {"X-Tier": "gold"}}, "use": "usage"}
    policies = {
        "auto": {"kind": "rules", "rules": [rule], "otherwise": "ok"},
        "other": {"kind": "split", "weights": {"usage": 1}},
    }
    body = {"model": "auto", "messages": HELLO}
    key = {"Idempotency-Key": "order-9"}
    with serving_runtime(runtime_of(write(tmp_path, upstream, policies=policies))) as url:

        def status(**headers: str) -> int:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            return int(call(url, "POST", "/v1/chat/completions", body, **key, **given)[0])

        assert status() == 200
        assert status(x_crossroads_policy="other") == 422
        assert status(x_crossroads_residency="eu") == 422
        assert status(x_tier="gold") == 422
        assert status(user_agent="another", x_stainless_retry_count="1") == 200


def test_a_stream_cut_short_is_not_kept_for_its_idempotency_key(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    models = [{"name": "cut-3", "endpoint": upstream.url}]
    pool = tmp_path / "cut.json"
    pool.write_text(json.dumps({"name": "fake", "models": models}), "utf-8")
    fields = {"pool": str(pool), "policies": {}}  # with nobody to continue it
    body = {"model": "cut-3", "messages": HELLO, "stream": True}
    with serving_runtime(runtime_of(write(tmp_path, upstream, **fields))) as url:
        before = len(upstream.requests)
        for number in (1, 2):
            _, headers, answer = call(
                url, "POST", "/v1/chat/completions", body, **{"Idempotency-Key": "order-3"}
            )
            assert b"[DONE]" not in answer
            assert "x-crossroads-replayed" not in headers
            assert len(upstream.requests) == before + number
