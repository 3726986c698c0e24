"""What the admin server hears of a gateway that serves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from crossroads.gateway.admin import build_admin
from crossroads.gateway.admin_sources import sources_of
from crossroads.gateway.config import read_config
from crossroads.gateway.governance import KeyFile
from crossroads.gateway.runtime import Runtime
from crossroads.gateway.telemetry import History, Snapshot

POOL = """
name: two
models:
  - {name: a, description: d, endpoint: "http://127.0.0.1:9/v1", price_in: 0, price_out: 1}
  - {name: b, description: d, endpoint: "http://127.0.0.1:9/v1", price_in: 0, price_out: 1}
"""


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    (tmp_path / "pool.yaml").write_text(POOL)
    path = tmp_path / "gateway.yaml"
    path.write_text(f"pool: {tmp_path / 'pool.yaml'}\nledger: null\ntelemetry: {{logs: null}}\n")
    return Runtime(read_config(path), path=path)


def heard(runtime: Runtime, name: str, *arguments: Any) -> Any:
    sources = sources_of(runtime, History(runtime.telemetry.figures), gateway_url="")
    return asyncio.run(getattr(sources, name)(*arguments))


@pytest.mark.parametrize("text", ["bogus: 1", ": : [", "- 1", "pool: gone.yaml", "workers: many"])
def test_findings_on_a_text_name_no_file_it_was_never_in(runtime: Runtime, text: str) -> None:
    found = heard(runtime, "check_config", text)
    assert found["ok"] is False
    told = " ".join(f"{one['place']} {one['message']}" for one in found["problems"])
    assert "gateway.yaml" not in told and "/tmp" not in told.replace(str(Path.cwd()), "")


def test_a_key_made_by_the_api_has_every_field_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(POOL)
    path, keys = tmp_path / "gateway.yaml", tmp_path / "keys.yaml"
    path.write_text(
        f"pool: {tmp_path / 'pool.yaml'}\nledger: null\ntelemetry: {{logs: null}}\n"
        f"governance: {{keys_file: {keys}}}\n"
    )
    runtime = Runtime(read_config(path), path=path)
    sources = sources_of(runtime, History(runtime.telemetry.figures), gateway_url="")
    client = TestClient(build_admin(sources), base_url="http://127.0.0.1:8081")
    fields: dict[str, Any] = {
        "models": ["a"],
        "tags": ["batch"],
        "residency": ["eu"],
        "expires": "2099-01-01",
        "disabled": True,
        "limits": {"requests_per_minute": 5},
        "budgets": [{"usd": 5, "per": "day"}],
    }
    assert client.post("/api/keys", json={"name": "e", **fields}).status_code == 200
    (key,) = KeyFile(keys).read().keys
    stored = key.model_dump(mode="json", exclude_defaults=True)
    assert stored.pop("expires").startswith("2099-01-01T00:00:00")
    assert stored == {
        "name": "e",
        "hash": key.hash,
        "created": stored["created"],
        **{name: value for name, value in fields.items() if name != "expires"},
        "budgets": [{"usd": 5.0, "per": "day"}],
    }
    for wrong in ({"limits": {"requests_per_minut": 5}}, {"budgets": 5}, {"team": "none"}):
        refused = client.post("/api/keys", json={"name": "f", **wrong})
        assert refused.status_code == 400
        assert next(iter(wrong)) in refused.json()["error"]["message"]
    for unknown, told in (
        ({"budget": "5/day"}, "did you mean 'budgets'?"),
        ({"modles": ["a"]}, "did you mean 'models'?"),
        ({"hash": "sha256:" + 64 * "0"}, "unknown field 'hash'"),
        ({"secret": 20 * "x"}, "unknown field 'secret'"),
        ({"self": 1}, "unknown field 'self'"),
    ):
        refused = client.post("/api/keys", json={"name": "f", **unknown})
        assert refused.status_code == 400 and told in refused.json()["error"]["message"]
    assert len(KeyFile(keys).read().keys) == 1


def test_a_text_that_is_no_yaml_is_called_the_text(runtime: Runtime) -> None:
    (problem,) = heard(runtime, "check_config", ": : [")["problems"]
    assert "the text" in problem["message"]


def test_upstreams_and_health_are_of_all_workers(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert heard(runtime, "health")["workers"] == 1

    async def figures() -> Snapshot:
        gauges = {
            ("crossroads_workers", ()): 2.0,
            ("crossroads_breaker_state", ("a",)): 2.0,
            ("crossroads_upstream_in_flight", ("a",)): 3.0,
            ("crossroads_degraded", ("telemetry",)): 1.0,
        }
        return Snapshot(gauges=gauges)

    monkeypatch.setattr(runtime.telemetry, "figures", figures)
    upstreams = heard(runtime, "upstreams")
    assert (upstreams["a"]["state"], upstreams["a"]["in_flight"]) == ("open", 3)
    assert upstreams["b"]["state"] == "closed"
    health = heard(runtime, "health")
    assert health["workers"] == 2 and health["parts"]["telemetry"]["status"] == "degraded"
