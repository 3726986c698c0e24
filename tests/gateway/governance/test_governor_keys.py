"""Keys of a file, made, revoked and spoilt while a governor serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance import (
    GovernanceSettings,
    KeyFile,
    KeyGovernor,
    hash_secret,
)
from tests.gateway.governance.asking import HEADERS, SECRET, settings


def test_keys_are_made_and_revoked_while_serving(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    both = GovernanceSettings.model_validate(
        {"keys_file": str(path), "teams": {"t": {}}, "keys": [{"name": "fixed", "secret": SECRET}]}
    )

    async def change() -> None:
        here, there = KeyGovernor(both), KeyGovernor(both)
        for governor in (here, there):
            await governor.start()
        secret = await here.key_store.create("alice", team="t", models=["auto"])
        headers = {b"x-api-key": secret.encode()}
        assert here.identify(headers).key_id == "alice"
        await until_known(there, headers)
        assert there.identify(headers).team == "t"
        rotated = await here.key_store.rotate("alice")
        with pytest.raises(ApiError):
            here.identify(headers)
        assert here.identify({b"x-api-key": rotated.encode()}).key_id == "alice"
        await here.key_store.revoke("alice")
        with pytest.raises(ApiError):
            here.identify({b"x-api-key": rotated.encode()})
        assert [row["name"] for row in here.key_store.list()] == ["fixed"]
        with pytest.raises(InputError, match="in the configuration"):
            await here.key_store.revoke("fixed")
        with pytest.raises(InputError, match="no team 'none'"):
            await here.key_store.create("bob", team="none")
        with pytest.raises(UsageError, match="unknown key"):
            await here.key_store.revoke("nobody")
        for governor in (here, there):
            await governor.close()

    asyncio.run(change())


async def until_known(governor: KeyGovernor, headers: dict[bytes, bytes]) -> None:
    for _ in range(300):
        try:
            governor.identify(headers)
            return
        except ApiError:
            await asyncio.sleep(0.01)
    raise AssertionError("the key never became known")


def test_without_a_file_no_key_is_made() -> None:
    governor = KeyGovernor(settings())
    with pytest.raises(InputError, match="no file for keys"):
        asyncio.run(governor.key_store.create("bob"))


def test_a_file_that_became_wrong_keeps_the_keys_and_degrades_health(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.yaml")
    secret, _ = file.create("alice")
    governor = KeyGovernor(GovernanceSettings(keys_file=str(file.path)))
    headers = {b"x-api-key": secret.encode()}

    async def spoil() -> None:
        await governor.start()
        right = file.path.read_text()
        for text, status in (("keys: [", "degraded"), (right, "ok")):
            file.path.write_text(text)
            for _ in range(300):
                if governor.health()["status"] == status:
                    break
                await asyncio.sleep(0.01)
            assert governor.health()["status"] == status
            assert governor.identify(headers).key_id == "alice"
        await governor.close()

    asyncio.run(spoil())


def test_a_key_of_an_unknown_team_is_refused_and_named_and_the_others_are_let_in(
    tmp_path: Path,
) -> None:
    file = KeyFile(tmp_path / "keys.yaml")
    bad, _ = file.create("bad", team="none")
    good, _ = file.create("good")
    governor = KeyGovernor(GovernanceSettings(keys_file=str(file.path)))
    assert governor.identify({b"x-api-key": good.encode()}).key_id == "good"
    with pytest.raises(ApiError):
        governor.identify({b"x-api-key": bad.encode()})
    health = governor.health()
    assert health["status"] == "degraded"
    assert health["problem"].startswith(f"keys {file.path}: key 'bad' is refused: no team 'none'")


def test_a_wrong_entry_holds_up_neither_new_keys_nor_revocations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = KeyFile(tmp_path / "keys.yaml")
    first = {b"x-api-key": file.create("first")[0].encode()}
    governor = KeyGovernor(GovernanceSettings(keys_file=str(file.path)))

    async def change() -> None:
        await governor.start()
        file.create("bad", team="none")
        later = {b"x-api-key": file.create("later")[0].encode()}
        await until_known(governor, later)
        file.revoke("first")  # by the command line, which another process is
        await until_refused(governor, first)
        await governor.key_store.revoke("later")
        with pytest.raises(ApiError):
            governor.identify(later)
        await governor.key_store.revoke("bad")
        assert governor.health() == {"status": "ok"}
        await governor.close()

    asyncio.run(change())
    said = [record.message for record in caplog.records if "no team 'none'" in record.message]
    assert len(said) == 1


async def until_refused(governor: KeyGovernor, headers: dict[bytes, bytes]) -> None:
    for _ in range(300):
        try:
            governor.identify(headers)
        except ApiError:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the key was never refused")


def test_keys_of_the_configuration_go_before_those_of_the_file(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.yaml")
    file.create("a")
    same = hash_secret(SECRET)
    file.path.write_text(file.path.read_text() + f"- {{name: copy, hash: '{same}'}}\n")
    governor = KeyGovernor(settings(keys_file=str(file.path)))
    assert governor.identify(HEADERS).key_id == "a"
    assert [row["name"] for row in governor.key_store.list()] == ["a"]
    first, second = governor.key_problems
    assert "key 'a' is refused: the configuration has a key of this name" in first
    assert "key 'copy' is refused: it has the secret of 'a'; rotate it" in second


def test_the_health_spells_out_a_few_problems_only(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.yaml")
    for number in range(5):
        file.create(f"k{number}", team="none")
    problem = KeyGovernor(GovernanceSettings(keys_file=str(file.path))).health()["problem"]
    assert problem.count("is refused") == 3
    assert problem.endswith("; and 2 more")
