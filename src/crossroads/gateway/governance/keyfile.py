"""keys.yaml: the virtual keys that ``crossroads keys`` and the admin API write.

Every change is made under a lock on ``keys.yaml.lock`` and appears whole or not at all, so several
writers and any number of readers can share the file. It holds hashes, never secrets, and is
readable by its owner alone. Where root writes it, its owner is that of its folder, so that a
service with a user of its own can read what was made for it. Entries that are wrong stay as they
are until somebody mends or revokes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from crossroads.core.errors import InputError, UnavailableError, unknown_name
from crossroads.core.files import replacing
from crossroads.core.problems import on_one_line, problems_of, yaml_problem
from crossroads.gateway.governance.entries import Entries, name_of, read_entries
from crossroads.gateway.governance.keys import hash_secret, new_secret
from crossroads.gateway.governance.settings import KeySettings
from crossroads.gateway.settings import Section

_HEAD = "# Virtual keys: written by 'crossroads keys'; comments are not kept. Holds no secrets.\n"


class _File(Section):
    keys: tuple[Any, ...] = Field(default=())


class KeyFile:
    """The keys in one file. Every method raises InputError for a file that is no list of keys."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> Entries:
        """Return the keys that are right, and what is wrong with others; none without a file."""
        return read_entries(f"keys {self.path}", self._rows())

    def _rows(self) -> tuple[Any, ...]:
        """Return the entries as they are written."""
        try:
            raw = yaml.safe_load(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise InputError(
                f"keys {self.path}: cannot be read: {error.strerror}; correct the path"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            problem = yaml_problem(error)
            raise InputError(f"keys {self.path}: not valid YAML: {problem}; correct it") from None
        try:
            return _File.model_validate({} if raw is None else raw).keys
        except ValidationError as error:
            problem = on_one_line(problems_of(error, _File))
            raise InputError(f"keys {self.path}: {problem}") from None

    def create(self, name: str, /, **fields: Any) -> tuple[str, KeySettings]:
        """Add a key; ``fields`` as in ``KeySettings``. Returns its secret, which is kept nowhere.

        Raises InputError for a name that is taken and for fields that are wrong.
        """
        secret = new_secret()
        try:
            key = KeySettings(
                name=name,
                hash=hash_secret(secret),
                created=datetime.now(UTC).replace(microsecond=0),
                **fields,
            )
        except ValidationError as error:
            problem = on_one_line(problems_of(error, KeySettings))
            raise InputError(f"key {name!r}: {problem}") from None

        def add(rows: list[Any]) -> list[Any]:
            if name in map(name_of, rows):
                raise InputError(f"key {name!r} is there already; rotate it, or choose a new name")
            return [*rows, _row(key)]

        self._change(add)
        return secret, key

    def revoke(self, name: str) -> None:
        """Remove a key, right or wrong. Raises UsageError for one that is not there."""

        def remove(rows: list[Any]) -> list[Any]:
            _check_known(rows, name)
            return [row for row in rows if name_of(row) != name]

        self._change(remove)

    def rotate(self, name: str) -> tuple[str, KeySettings]:
        """Give a key a new secret; the old one is refused from then on.

        Raises as ``revoke``, and InputError for a key that is wrong in itself.
        """
        secret = new_secret()
        changed = {"hash": hash_secret(secret), "secret": None}
        found: list[KeySettings] = []

        def replace(rows: list[Any]) -> list[Any]:
            _check_known(rows, name)
            own = read_entries(f"keys {self.path}", [row for row in rows if name_of(row) == name])
            if own.problems:
                raise InputError(own.problems[0])
            found.append(own.keys[0].model_copy(update=changed))
            return [_row(found[0]) if name_of(row) == name else row for row in rows]

        self._change(replace)
        return secret, found[0]

    def _change(self, change: Callable[[list[Any]], list[Any]]) -> None:
        with _locked(self.path):
            rows = change(list(self._rows()))
            with replacing(self.path) as temporary:
                temporary.touch(mode=0o600)
                _hand_over(temporary)
                text = yaml.safe_dump({"keys": rows}, sort_keys=False, width=100)
                temporary.write_text(_HEAD + text, "utf-8")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError as error:
        raise UnavailableError("keys are written on POSIX systems only; edit the file") from error
    lock = path.with_name(path.name + ".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = lock.open("a")
        _hand_over(lock)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{lock}: cannot be written: {reason}; choose another folder or free the disk"
        ) from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"{lock}: cannot be locked: {reason}; choose a folder on a local disk"
            ) from error
        yield


def _hand_over(path: Path) -> None:
    """Give a file that root made to the owner of its folder."""
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.chown(path, folder.st_uid, folder.st_gid, follow_symlinks=False)


def _check_known(rows: list[Any], name: str) -> None:
    names = [known for known in map(name_of, rows) if known]
    if name not in names:
        raise unknown_name("key", name, names)


def _row(key: KeySettings) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude_defaults=True)
