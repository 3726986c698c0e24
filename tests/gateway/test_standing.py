"""What a worker begins with that takes the place of a dead one."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossroads.gateway.config import read_config
from crossroads.gateway.governance import KeyFile
from crossroads.gateway.runtime import Runtime
from crossroads.gateway.standing import Keeper, Standing
from crossroads.gateway.workers import can_share_ports
from tests.gateway.chaos.asking import ask
from tests.gateway.chaos.configured import (
    KEY,
    card,
    fit_small_router,
    records,
    records_of,
    until,
    write,
)
from tests.gateway.chaos.processes import Stub, gateway, kill
from tests.gateway.serving import serving_runtime

NAMES = ("alpha", "beta", "gamma")
SOON = 0.05
SAID = ("crossroads serves on", "2 workers serve on", "try: ")  # on standard output


def whole(folder: Path, url: str) -> tuple[Path, str]:
    """Write a configuration with every kind of file; return it and a key of its file."""
    (folder / "prices.yaml").write_text("alpha: {in: 7, out: 8}\n")
    (folder / "keys.yaml").unlink(missing_ok=True)
    secret, _ = KeyFile(folder / "keys.yaml").create("alice", team="research", tags=["a"])
    path = write(
        folder,
        [card(name, url) for name in NAMES],
        policies={
            "auto": {"kind": "learned", "router": fit_small_router(folder, NAMES)},
            "code": {
                "kind": "rules",
                "rules": [{"when": {"tools": True}, "use": "beta"}],
                "otherwise": "auto",
            },
        },
        fallbacks={"alpha": ["beta"]},
        governance={
            "keys_file": str(folder / "keys.yaml"),
            "prices_file": str(folder / "prices.yaml"),
            "keys": [{"name": "mine", "secret": KEY, "expires": "2099-01-01T00:00:00"}],
            "teams": {"research": {"budgets": [{"usd": 5, "per": "day"}]}},
        },
        telemetry={"logs": {"level": "warning"}},
        watch_s=SOON,
    )
    return path, secret


def keeping(path: Path, told: list[bytes], folder: Path, **more: Any) -> Runtime:
    read = partial(read_config, path)
    keeper = Keeper(told.append, folder)
    return Runtime(read(), read=read, path=path, keeper=keeper, **more)


def replacing(path: Path, standing: Standing) -> Runtime:
    read = partial(read_config, path)
    return Runtime(standing.config, read=read, path=path, standing=standing)


FILES = ("gateway.json", "pool.json", "keys.yaml", "prices.yaml", "fitted/router.json")


def spoil(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("{ never closed")


@pytest.fixture(scope="module")
def stub_url() -> Any:
    with Stub() as stub:
        yield stub.url


@pytest.mark.parametrize("names", [*((name,) for name in FILES), FILES])
def test_a_worker_to_come_needs_no_file_that_is_right(
    names: tuple[str, ...], stub_url: str, tmp_path: Path
) -> None:
    path, secret = whole(tmp_path, stub_url)
    told: list[bytes] = []
    with serving_runtime(keeping(path, told, tmp_path / "kept")) as url:
        before = ask(url, "auto", key=secret)
    spoil(tmp_path, *names)
    bad = {"governance" if name in FILES[2:4] else "configuration" for name in names}

    def degraded() -> set[str]:
        parts = runtime.health()["parts"]
        return {name for name, part in parts.items() if part["status"] != "ok"}

    runtime = replacing(path, Standing.from_bytes(told[-1]))
    with serving_runtime(runtime) as url:
        after = ask(url, "auto", key=secret)
        until(degraded, bad.__eq__)
        assert ask(url, "auto", key=secret).looks_whole
    assert after.looks_whole
    price = "x-crossroads-cost-usd"
    assert (after.model, after.headers[price]) == (before.model, before.headers[price])


def test_a_worker_to_come_lets_in_the_keys_of_a_file_that_is_gone(
    stub_url: str, tmp_path: Path
) -> None:
    path, secret = whole(tmp_path, stub_url)
    told: list[bytes] = []
    with serving_runtime(keeping(path, told, tmp_path / "kept")):
        (tmp_path / "keys.yaml").unlink()
    with serving_runtime(replacing(path, Standing.from_bytes(told[-1]))) as url:
        assert ask(url, "auto", key=secret).looks_whole


def test_what_is_told_is_what_is_served(stub_url: str, tmp_path: Path) -> None:
    path, _ = whole(tmp_path, stub_url)
    told: list[bytes] = []
    runtime = keeping(path, told, tmp_path / "kept")
    with serving_runtime(runtime):
        pass
    standing = Standing.from_bytes(told[-1])
    assert standing.config == runtime.config
    assert standing.config.model_fields_set == runtime.config.model_fields_set
    assert standing.pool == runtime.built.pool
    assert standing.keys == runtime.built.governor.entries.keys
    assert standing.marks == runtime._marks


def test_a_change_of_keys_prices_and_routers_is_told(stub_url: str, tmp_path: Path) -> None:
    path, _ = whole(tmp_path, stub_url)
    told: list[bytes] = []
    with serving_runtime(keeping(path, told, tmp_path / "kept")):
        first = Standing.from_bytes(told[-1])
        KeyFile(tmp_path / "keys.yaml").revoke("alice")
        until(lambda: Standing.from_bytes(told[-1]).keys == ())
        (tmp_path / "prices.yaml").write_text("alpha: {in: 9}\n")
        until(lambda: Standing.from_bytes(told[-1]).prices["alpha"][0] == pytest.approx(9e-6))
        assert Standing.from_bytes(told[-1]).routers == first.routers  # no copy for nothing
        router = tmp_path / "fitted" / "router.json"
        router.write_text(router.read_text() + "\n")
        until(lambda: Standing.from_bytes(told[-1]).routers != first.routers)
        (copy,) = Standing.from_bytes(told[-1]).routers.values()
        assert (Path(copy) / "router.json").read_text() == router.read_text()
        until(lambda: len(list((tmp_path / "kept").iterdir())) == 1)


def test_a_worker_to_come_takes_up_what_has_become_of_the_files(
    stub_url: str, tmp_path: Path
) -> None:
    path, secret = whole(tmp_path, stub_url)
    told: list[bytes] = []
    with serving_runtime(keeping(path, told, tmp_path / "kept")):
        pass
    settings = json.loads(path.read_text())
    settings["policies"]["auto"] = {"kind": "split", "weights": {"gamma": 1}}
    path.write_text(yaml.safe_dump(settings))
    with serving_runtime(replacing(path, Standing.from_bytes(told[-1]))) as url:
        until(lambda: ask(url, "auto", key=secret).model == "gamma")


@pytest.mark.slow
@pytest.mark.skipif(not can_share_ports(), reason="needs SO_REUSEPORT")
def test_a_gateway_with_wrong_files_outlives_the_death_of_every_worker(tmp_path: Path) -> None:
    with Stub() as stub:
        path, secret = whole(tmp_path, stub.url)
        with gateway(path, workers=2) as served:
            spoil(tmp_path, *FILES)
            shutil.rmtree(tmp_path / "fitted")
            before = served.workers()
            for pid in before:
                kill(pid)
            until(lambda: len(served.workers() - before) == 2, seconds=20)

            def answers() -> bool:
                try:
                    return all(ask(served.url, "auto", key=secret).looks_whole for _ in range(12))
                except OSError:
                    return False  # while they start

            until(answers, seconds=20)
            assert served.process.poll() is None
            assert served.stop() == 0
            lines = served.log.read_text().splitlines()
    logged = [json.loads(line) for line in lines if not line.startswith(SAID)]
    assert {line["message"] for line in logged if line["logger"].endswith("workers")} == {
        f"worker {n} died (exit code -9); starting it again" for n in range(2)
    }


@pytest.mark.slow
@pytest.mark.skipif(not can_share_ports(), reason="needs SO_REUSEPORT")
def test_a_worker_started_again_writes_to_the_ledger_of_the_others(tmp_path: Path) -> None:
    with Stub() as stub:
        path, secret = whole(tmp_path, stub.url)
        with gateway(path, workers=2) as served:
            before = served.workers()
            settings = json.loads(path.read_text())
            settings["ledger"]["url"] = f"sqlite:{tmp_path / 'new.db'}"
            settings["policies"]["now"] = {"kind": "split", "weights": {"beta": 1}}
            path.write_text(json.dumps(settings))
            until(lambda: ask(served.url, "now", key=secret).model == "beta")
            for pid in sorted(before):
                kill(pid)
                until(lambda pid=pid: pid not in served.workers() and len(served.workers()) == 2)
                until(lambda: _answers(served.url, secret), seconds=20)
            replies = [ask(served.url, "now", key=secret) for _ in range(20)]
            rows = records_of(tmp_path, [reply.decision_id for reply in replies])
    assert len(rows) == 20
    assert not (tmp_path / "new.db").exists()
    assert len(records(tmp_path)) >= 20


def _answers(url: str, secret: str) -> bool:
    try:
        return all(ask(url, "now", key=secret).looks_whole for _ in range(8))
    except OSError:
        return False  # while one starts
