from __future__ import annotations

import asyncio
import socket
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
        return [
            finding.message
            for finding in found
            if finding.place == "ledger" and finding.level != "note"
        ]

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
        stores = [finding for finding in found if finding.place.endswith(".store")]
        reached[:] = [finding.place for finding in stores if finding.level == "note"]
        return [finding.place for finding in stores if finding.level == "error"]

    reached: list[str] = []
    with redis_server(durable=False) as server:
        assert down(server.tcp_url) == []
        assert reached == ["governance.store", "cache.store", "responses.store"]
    assert down(server.tcp_url) == ["governance.store", "cache.store", "responses.store"]


def test_a_probe_names_the_models_it_reached(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        fields = served_by(tmp_path, endpoint=f"http://{place}/v1")
        notes = [
            finding
            for finding in findings(tmp_path, probe=True, **fields)
            if finding.level == "note"
        ]
    assert notes == [Finding("note", "models.m", f"{place} takes connections")]
    after = findings(tmp_path, probe=True, **fields)
    assert not [finding for finding in after if finding.level == "note"]


def told(folder: Path, level: str, **fields: Any) -> list[tuple[str, str]]:
    found = findings(folder, **fields)
    return [(finding.place, finding.message) for finding in found if finding.level == level]


def served_by(folder: Path, **card: Any) -> dict[str, str]:
    """A pool of one model, as a field of a configuration."""
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump({"models": [{**POOL["models"][0], **card}]}))  # type: ignore[dict-item]
    return {"pool": str(path)}


@pytest.mark.parametrize(
    ("host", "admin_host", "admin_port", "is_refused"),
    [
        ("127.0.0.1", "127.0.0.1", 8092, True),
        ("127.0.0.1", "localhost", 8092, True),
        ("127.0.0.1", "127.0.0.1", 8093, False),
        ("127.0.0.1", "127.0.0.2", 8092, False),
        ("127.0.0.1", "::", 8092, True),
    ],
)
def test_one_port_for_two_servers_is_an_error(
    host: str, admin_host: str, admin_port: int, is_refused: bool, tmp_path: Path
) -> None:
    admin = {"host": admin_host, "port": admin_port, "token": "t" * 20}
    errors = told(tmp_path, "error", host=host, port=8092, admin=admin)
    assert ["admin.port: 8092 is the gateway's own" in message for _, message in errors] == (
        [True] if is_refused else []
    )


def test_a_file_of_authorities_that_no_server_could_start_with_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for name in ("nix.pem", "bad.pem"):
        card = {"endpoint": "https://127.0.0.1:9/v1", "ca_file": str(tmp_path / name)}
        ((place, message),) = told(tmp_path, "error", **served_by(tmp_path, **card))
        assert place == "models.m.ca_file" and name in message
        plain = {"ca_file": str(tmp_path / name)}
        warned = told(tmp_path, "warning", **served_by(tmp_path, **plain))
        assert [place for place, message in warned if "no effect" in message] == [place]


def test_a_model_cannot_stand_in_for_itself(tmp_path: Path) -> None:
    (found,) = told(tmp_path, "error", fallbacks={"m": ["m"]})
    assert found == ("fallbacks.m", "'m' cannot stand in for itself; remove it")


def test_a_path_that_is_added_to_the_endpoint_is_a_warning(tmp_path: Path) -> None:
    card = {"endpoint": "http://127.0.0.1:9/v1/chat/completions"}
    warned = dict(told(tmp_path, "warning", **served_by(tmp_path, **card)))
    assert warned["models.m.endpoint"].endswith("give the base URL, http://127.0.0.1:9/v1")
    assert "models.m.endpoint" not in dict(told(tmp_path, "warning"))


def test_a_key_whose_data_no_model_may_have_is_a_warning(tmp_path: Path) -> None:
    key = {"name": "a", "secret": "x" * 20, "residency": ["eu"]}
    place = "governance.keys[0].residency"
    for promised, is_warned in (([], True), (["us"], True), (["eu", "us"], True), (["eu"], False)):
        fields = served_by(tmp_path, residency=promised)
        warned = dict(told(tmp_path, "warning", governance={"keys": [key]}, **fields))
        assert (place in warned) == is_warned


def test_a_price_of_a_model_there_is_not_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("mm: {in: 1}\nm: {in: 1}\n")
    governance = {"prices_file": str(tmp_path / "prices.yaml")}
    warned = dict(told(tmp_path, "warning", governance=governance))
    assert "unknown model 'mm'" in warned["governance.prices_file"]


def test_all_that_is_wrong_is_told_though_the_router_is_yet_to_be_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEY_OF_A_TEST", raising=False)
    errors = told(
        tmp_path,
        "error",
        **served_by(tmp_path, api_key="${KEY_OF_A_TEST}"),
        policies={"auto": {"kind": "learned", "router": str(tmp_path / "my-router")}},
    )
    assert any("my-router" in message for _, message in errors)
    assert any("KEY_OF_A_TEST" in message for _, message in errors)
    governance = {"keys_file": str(tmp_path / "keys.yaml")}
    warned = told(
        tmp_path,
        "warning",
        governance=governance,
        policies={"auto": {"kind": "learned", "router": str(tmp_path / "my-router")}},
    )
    assert any("keys create NAME" in message for _, message in warned)


def test_a_key_that_is_refused_is_a_warning_that_names_the_file(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.yaml")
    file.create("bob", team="nope")
    file.create("alice")
    found = findings(tmp_path, governance={"keys_file": str(file.path)})
    (refused,) = [finding for finding in found if finding.place == "governance.keys_file"]
    assert refused.level == "warning"
    assert f"{file.path}: key 'bob' is refused: no team 'nope'" in refused.message


def test_every_mistake_of_the_policies_is_told_at_its_place(tmp_path: Path) -> None:
    rules = [{"when": {"regex": "("}, "use": "m"}]
    errors = told(
        tmp_path,
        "error",
        policies={
            "a": {"kind": "split", "weights": {"nomodel": 1}},
            "b": {"kind": "rules", "rules": rules, "otherwise": "m"},
            "c": {"kind": "learned", "router": str(tmp_path / "nowhere")},
            "d": {"kind": "canary", "base": "m", "candidate": "m", "share": 0.1},
            "e": {"kind": "sticky", "policy": "a"},  # wrong only since a is: told once
        },
        fallbacks={"m": ["mm"]},
    )
    assert [place for place, _ in errors] == [
        *("policies.c.router", "fallbacks.m", "policies.a.weights"),
        *("policies.b.rules[0].when.regex", "policies.d.candidate"),
    ]
    assert "nowhere" in errors[0][1] and "no such folder" in errors[0][1]


def test_a_router_that_is_missing_is_told_once_by_the_field_that_names_it(tmp_path: Path) -> None:
    errors = told(tmp_path, "error", router=str(tmp_path / "nowhere"), fallbacks={"m": ["mm"]})
    assert [place for place, _ in errors] == ["", "fallbacks.m"]
    assert "nowhere" in errors[0][1]
