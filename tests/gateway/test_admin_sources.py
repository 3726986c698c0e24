"""What the admin server hears of a gateway that serves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crossroads.gateway.admin_sources import sources_of
from crossroads.gateway.config import read_config
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
