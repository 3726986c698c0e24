from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossroads.gateway import checking
from crossroads.gateway.build import build
from crossroads.gateway.checking import Finding, check
from crossroads.gateway.governance import KeyFile
from crossroads.gateway.ledger import LedgerSettings, open_ledger
from tests.gateway.redis_server import redis_server

POOL = {"name": "p", "models": [{"name": "m", "endpoint": "http://127.0.0.1:9/v1", "price_in": 1}]}
WORD = "word-of-a-file-that-is-nobodys-business"


def findings(folder: Path, *, probe: bool = False, **fields: Any) -> list[Finding]:
    (folder / "pool.yaml").write_text(yaml.safe_dump(POOL))
    path = folder / "gateway.yaml"
    given = {"pool": str(folder / "pool.yaml"), "ledger": None, "admin": None, **fields}
    path.write_text(yaml.safe_dump(given))
    return asyncio.run(check(str(path), probe=probe))


def test_a_check_makes_nothing_on_the_disk(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path}/made/by/check/limits.db"
    keys = [{"name": "a", "secret": "x" * 20, "limits": {"parallel": 1}}]
    ledger = {"url": f"sqlite:{tmp_path}/made/too/ledger.db"}
    found = findings(tmp_path, governance={"store": store, "keys": keys}, ledger=ledger)
    assert [finding for finding in found if finding.level == "error"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gateway.yaml", "pool.yaml"]


def test_a_probe_makes_no_ledger_and_leaves_one_as_it_is(tmp_path: Path) -> None:
    def told(path: Path) -> list[str]:
        found = findings(tmp_path, probe=True, ledger={"url": f"sqlite:{path}"})
        return [finding.message for finding in found if finding.place == "ledger"]

    new = tmp_path / "made" / "by" / "probe" / "ledger.db"
    assert told(new) == []
    assert not (tmp_path / "made").exists()
    (behind,) = told(tmp_path / "pool.yaml" / "ledger.db")
    assert "pool.yaml is a file and no folder; name a file that can be written" in behind
    (other,) = told(tmp_path / "pool.yaml")
    assert "not a ledger" in other
    there = tmp_path / "ledger.db"
    open_ledger(LedgerSettings(url=f"sqlite:{there}")).close()
    before = there.read_bytes()
    assert told(there) == []
    assert there.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("ledger.db*")) == ["ledger.db"]


@pytest.mark.parametrize(
    "text", [WORD, f"[{WORD}", f"models: {WORD}", f"a: {WORD}: b", f"x: *{WORD}"]
)
@pytest.mark.parametrize("place", ["pool", "keys_file", "prices_file"])
def test_no_file_that_the_configuration_names_is_quoted(
    place: str, text: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text(text)
    fields: dict[str, Any] = {"pool": str(other)}
    if place != "pool":
        fields = {"governance": {place: str(other)}}
    (found,) = [finding for finding in findings(tmp_path, **fields) if finding.level == "error"]
    assert str(other) in found.message
    assert WORD not in found.message


def test_what_a_check_built_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def keeping(*given: Any) -> Any:
        kept.append(build(*given))
        return kept[0]

    monkeypatch.setattr(checking, "build", keeping)
    findings(tmp_path)
    assert kept[0].services.closers == []  # all were awaited


def test_a_probe_reaches_every_redis(tmp_path: Path) -> None:
    def down(url: str) -> list[str]:
        found = findings(
            tmp_path,
            probe=True,
            governance={"store": url},
            cache={"exact": True, "store": url},
            responses={"store": url},
        )
        assert all("hunter2" not in finding.message for finding in found)
        return [finding.place for finding in found if finding.place.endswith(".store")]

    with redis_server(durable=False) as server:
        assert down(server.tcp_url) == []
    assert down(server.tcp_url) == ["governance.store", "cache.store", "responses.store"]


def test_a_key_that_is_refused_is_a_warning_that_names_the_file(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.yaml")
    file.create("bob", team="nope")
    file.create("alice")
    found = findings(tmp_path, governance={"keys_file": str(file.path)})
    (refused,) = [finding for finding in found if finding.place == "governance.keys_file"]
    assert refused.level == "warning"
    assert f"{file.path}: key 'bob' is refused: no team 'nope'" in refused.message
