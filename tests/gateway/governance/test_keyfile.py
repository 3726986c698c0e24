from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.governance import KeyFile, hash_secret

ZEROS = "0" * 64


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.yaml")


def test_a_created_key_is_read_back_as_it_was_given(file: KeyFile) -> None:
    fields = {
        "models": ["auto"],
        "limits": {"requests_per_minute": 5},
        "budgets": [{"usd": 2.5, "per": "day", "pace": True}],
        "expires": "2030-01-31",
    }
    secret, made = file.create("alice", **fields)
    assert file.read().keys == (made,)
    assert made.hash == hash_secret(secret)
    assert made.budgets[0].usd == 2.5
    assert made.created is not None


def test_the_file_holds_no_secret_and_only_its_owner_reads_it(file: KeyFile) -> None:
    secret, _ = file.create("alice")
    rotated, _ = file.rotate("alice")
    text = file.path.read_text()
    assert secret not in text
    assert rotated not in text
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_name_that_cannot_be_is_told_in_words(file: KeyFile) -> None:
    with pytest.raises(InputError, match="name: expected 1 to 64 of the letters a to z, digits"):
        file.create("two words")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    os.chown(folder, 61_184, 61_185)
    file = KeyFile(folder / "keys.yaml")
    file.create("alice")
    file.rotate("alice")
    for path in folder.iterdir():
        assert (path.stat().st_uid, path.stat().st_gid) == (61_184, 61_185)
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_lock_that_cannot_be_written_and_one_that_cannot_be_held_are_told_apart(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with pytest.raises(InputError, match="cannot be locked: No locks available"):
            file.create("alice")

    def full(path: Path, mode: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"cannot be written: No space left.*free the disk"):
        file.create("alice")


def test_rotating_replaces_the_hash_and_keeps_the_rest(file: KeyFile) -> None:
    _, before = file.create("alice", tags=["x"])
    secret, after = file.rotate("alice")
    assert after == before.model_copy(update={"hash": hash_secret(secret)})
    assert file.read().keys == (after,)


def test_revoking_removes_one_key_only(file: KeyFile) -> None:
    file.create("alice")
    _, bob = file.create("bob")
    file.revoke("alice")
    assert file.read().keys == (bob,)


def test_names_are_unique_and_unknown_ones_are_named_with_the_nearest(file: KeyFile) -> None:
    file.create("alice")
    with pytest.raises(InputError, match="'alice' is there already"):
        file.create("alice")
    with pytest.raises(UsageError, match="did you mean 'alice'"):
        file.revoke("alcie")
    with pytest.raises(InputError, match="limits"):
        file.create("bob", limits={"parallel": 0})
    assert [key.name for key in file.read().keys] == ["alice"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("keys: [", "not valid YAML"),
        ("- 1", "expected fields and values, got a list"),
        ("keys: 3", "keys: expected a list, got a number"),
    ],
)
def test_a_file_that_is_not_right_is_named(file: KeyFile, text: str, problem: str) -> None:
    file.path.write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        file.read()
    assert str(file.path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{name: a}", "key 'a' is refused: expected either 'hash'"),
        ("{name: a, limts: {}}", "key 'a' is refused: unknown field 'limts'; did you mean"),
        (f"{{name: b c, hash: 'sha256:{ZEROS}'}}", r"keys\[0\] is refused: name: expected 1 to"),
        ("3", r"keys\[0\] is refused: expected fields and values, got a number"),
        (f"{{name: right, hash: 'sha256:{ZEROS}'}}", "key 'right' is refused: it is there twice"),
    ],
)
def test_an_entry_that_is_not_right_binds_no_other(file: KeyFile, entry: str, problem: str) -> None:
    file.create("other")
    _, made = file.create("right")
    text = file.path.read_text().replace("keys:\n", f"keys:\n- {entry}\n")
    file.path.write_text(text)
    found = file.read()
    assert [key.name for key in found.keys] == [
        "other",
        *(["right"] if "right" not in problem else []),
    ]
    (told,) = found.problems
    assert re.search(problem, told)
    assert str(file.path) in told
    assert "\n" not in told
    file.rotate("other")
    file.revoke("other")
    assert file.read().problems == found.problems, "what is wrong stays for somebody to mend"
    assert made.hash is not None
    assert made.hash in file.path.read_text()


def test_keys_of_one_secret_are_both_refused(file: KeyFile) -> None:
    _, made = file.create("alice")
    entry = f"{{name: bob, hash: '{made.hash}', disabled: true}}"
    file.path.write_text(file.path.read_text() + f"- {entry}\n")
    found = file.read()
    assert found.keys == ()
    assert len(found.problems) == 2
    file.rotate("alice")
    assert [key.name for key in file.read().keys] == ["alice", "bob"]


def test_a_wrong_entry_is_revoked_by_its_name_and_not_rotated(file: KeyFile) -> None:
    file.create("right")
    file.path.write_text(file.path.read_text() + "- {name: bad, limts: {}}\n")
    with pytest.raises(InputError, match="'bad' is refused: unknown field 'limts'"):
        file.rotate("bad")
    with pytest.raises(InputError, match="'bad' is there already"):
        file.create("bad")
    file.revoke("bad")
    assert file.read().problems == ()
    assert [key.name for key in file.read().keys] == ["right"]


def test_writers_at_the_same_time_lose_nothing(file: KeyFile) -> None:
    code = (
        "import sys; from crossroads.gateway.governance import KeyFile\n"
        "for i in range(5): KeyFile(sys.argv[1]).create(f'{sys.argv[2]}-{i}')"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(file.path), name]) for name in "abc"
    ]
    assert [process.wait(timeout=30) for process in running] == [0, 0, 0]
    assert len(file.read().keys) == 15
    assert sorted(path.name for path in file.path.parent.iterdir()) == [
        "keys.yaml",
        "keys.yaml.lock",
    ]
