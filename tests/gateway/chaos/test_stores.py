"""What the gateway keeps its counts and records in, killed or full while clients ask."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from crossroads.gateway.call import Call
from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance import GovernanceSettings, KeyGovernor
from tests.gateway.chaos.asking import ask, ask_all, asked, send
from tests.gateway.chaos.configured import KEY, card, records, records_of, until, write
from tests.gateway.chaos.processes import Gateway, Load, Stub, check_text, gateway
from tests.gateway.postgres_server import PostgresServer, missing_postgres
from tests.gateway.redis_server import redis_server

pytestmark = pytest.mark.slow
ONE_USD_A_CALL = {"price_in": 0.0, "price_out": 0.0, "price_per_call": 1.0}


def mixed(number: int) -> dict[str, Any]:
    return asked("m", stream=bool(number % 2))


def governance(store: str, budget: float, **fields: Any) -> dict[str, Any]:
    key = {"name": "a", "secret": KEY, "budgets": [{"usd": budget, "per": "30d"}]}
    return {"keys": [key], "store": store, **fields}


def spent(settings: dict[str, Any]) -> float:
    """Return what the store says the key has spent; it is asked for once a call reserves."""

    async def look() -> float:
        governor = KeyGovernor(GovernanceSettings.model_validate(settings))
        await governor.start()
        try:
            client = governor.identify({b"authorization": f"Bearer {KEY}".encode()})
            grant = await governor.admit(Call(dialect="chat", model="m", body={}, client=client))
            with suppress(ApiError):  # nothing is left to reserve
                await grant.reserve(0.001)
            grant.release()
            return float(governor.describe()["keys"][0]["budgets"][0]["spent_usd"])
        finally:
            await governor.close()

    return asyncio.run(look())


def health(served: Gateway) -> Any:
    return send(served.url, "GET", "/health/ready").json


# --- budgets --------------------------------------------------------------------------------------


@contextmanager
def _store(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:{folder / 'limits.db'}"
        return
    with redis_server(durable=False) as redis:
        yield redis.tcp_url


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_100_parallel_requests_over_4_workers_never_spend_more_than_a_budget_of_10(
    tmp_path: Path, kind: str, stream: bool
) -> None:
    """The stated bound is none at all; idle units of other workers come back within 3 s."""
    with _store(kind, tmp_path) as store, Stub("--delay", "0.02") as stub:
        settings = governance(store, 10.0)
        model = {**card("m", stub.url), **ONE_USD_A_CALL}
        with gateway(write(tmp_path, [model], governance=settings), workers=4) as served:
            assert len(served.workers()) == 4
            replies = ask_all(served.url, [asked("m", stream=stream)] * 100, key=KEY)
            granted = Counter(reply.status for reply in replies)
            assert granted.keys() == {200, 429}
            assert 6 <= granted[200] <= 10

            def ask_more() -> int:
                more = ask_all(served.url, [asked("m", stream=stream)] * 4, key=KEY)
                granted.update(reply.status for reply in more)
                return granted[200]

            until(ask_more, lambda total: total >= 10)
            assert ask_more() == 10
            assert served.stop() == 0
        assert spent(settings) == 10.0
    rows = records(tmp_path)
    assert sum(row.cost_usd for row in rows) == 10.0
    assert sum(row.is_complete for row in rows) == 10


def test_redis_killed_under_load_refuses_nobody_and_every_call_is_counted_in_the_end(
    tmp_path: Path,
) -> None:
    with redis_server() as redis, Stub("--delay", "0.005") as stub:
        settings = governance(redis.url, 100_000.0, on_store_failure="open")
        model = {**card("m", stub.url), **ONE_USD_A_CALL}
        path = write(tmp_path, [model], governance=settings)
        with (
            gateway(path, workers=2) as served,
            Load(served.url, mixed, key=KEY) as load,
        ):
            load.go_on(40)
            for _ in range(2):
                redis.kill()
                load.go_on(60)
                until(lambda: health(served), lambda seen: seen["status"] == "degraded")
                redis.start()
                load.go_on(60)
            until(lambda: {health(served)["status"] for _ in range(8)}, {"ok"}.__eq__)
        with gateway(path, workers=2) as served:  # the counts are those of before
            assert ask(served.url, "m", key=KEY).looks_whole
        assert all(reply.looks_whole for _, reply in load.replies)
        rows = records(tmp_path)
        assert {row.decision_id for row in rows} > {reply.decision_id for reply in load.whole}
        assert spent(settings) == sum(row.cost_usd for row in rows) == len(load.whole) + 1


# --- ledgers --------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(missing_postgres()), reason=missing_postgres() or "it is there")
def test_postgres_killed_under_load_loses_no_row(tmp_path: Path) -> None:
    with PostgresServer() as postgres, Stub("--delay", "0.005") as stub:
        ledger = {
            "url": postgres.url,
            "flush_ms": 20,
            "timeout_s": 1.0,
            "journal": str(tmp_path / "journal"),
        }
        path = write(tmp_path, [card("m", stub.url)], ledger=ledger)
        with gateway(path, workers=2) as served, Load(served.url, mixed) as load:
            load.go_on(60)
            postgres.kill()
            load.go_on(60)
            until(lambda: health(served), lambda seen: seen["parts"]["ledger"] == "degraded")
            postgres.start()
            until(
                lambda: {health(served)["parts"]["ledger"] for _ in range(8)},
                {"ok"}.__eq__,
                seconds=12.0,
            )
            load.go_on(20)
        assert all(reply.looks_whole for _, reply in load.replies)
        rows = records_of(postgres.url, [reply.decision_id for reply in load.whole])
    assert all(len(found) == 1 for found in rows.values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let a file system be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_nobody_is_said_and_loses_no_row(
    tmp_path: Path, small_disk: Path
) -> None:
    url = f"sqlite:{small_disk / 'ledger.db'}"
    with Stub() as stub:
        path = write(tmp_path, [card("m", stub.url)], ledger={"url": url, "flush_ms": 20})
        with gateway(path) as served, Load(served.url, mixed) as load:
            load.go_on(20)
            _fill(small_disk / "other")
            load.go_on(200)
            seen = until(lambda: health(served), lambda found: found["status"] == "degraded")
            load.go_on(50)
            (small_disk / "other").unlink()
            until(lambda: health(served), lambda found: found["status"] == "ok", seconds=12.0)
        assert seen["parts"]["ledger"] == "degraded"
        assert all(reply.looks_whole for _, reply in load.replies)
        for reply in load.whole:
            check_text(reply)
        rows = records_of(url, [reply.decision_id for reply in load.whole])
    assert all(len(found) == 1 for found in rows.values())


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1024)):
            pass
