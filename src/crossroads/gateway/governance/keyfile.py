"""keys.yaml: the virtual keys that ``crossroads keys`` and the admin API write.

Every change is made under a lock on ``keys.yaml.lock`` and appears whole or not at all, so several
writers and any number of readers can share the file. It holds hashes, never secrets, and is
readable by its owner alone. Where root writes it, its owner is that of its folder, so that a
service with a user of its own can read what was made for it.
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
from crossroads.gateway.governance.keys import hash_secret, new_secret
from crossroads.gateway.governance.settings import KeySettings
from crossroads.gateway.settings import Section

_HEAD = "# Virtual keys: written by 'crossroads keys'; comments are not kept. Holds no secrets.\n"


class _File(Section):
    keys: tuple[KeySettings, ...] = Field(default=())


class KeyFile:
    """The keys in one file. Every method raises InputError for a file that is not right."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> tuple[KeySettings, ...]:
        """Return the keys; none where there is no file yet."""
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
            keys = _File.model_validate({} if raw is None else raw).keys
        except ValidationError as error:
            problem = on_one_line(problems_of(error, _File))
            raise InputError(f"keys {self.path}: {problem}") from None
        names = [key.name for key in keys]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise InputError(f"keys {self.path}: {repeated[0]!r} is there twice; remove one")
        return keys

    def create(self, name: str, **fields: Any) -> tuple[str, KeySettings]:
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

        def add(keys: list[KeySettings]) -> list[KeySettings]:
            if any(known.name == name for known in keys):
                raise InputError(f"key {name!r} is there already; rotate it, or choose a new name")
            return [*keys, key]

        self._change(add)
        return secret, key

    def revoke(self, name: str) -> None:
        """Remove a key. Raises UsageError for one that is not there."""

        def remove(keys: list[KeySettings]) -> list[KeySettings]:
            _find(keys, name)
            return [key for key in keys if key.name != name]

        self._change(remove)

    def rotate(self, name: str) -> tuple[str, KeySettings]:
        """Give a key a new secret; the old one is refused from then on. Errors as ``revoke``."""
        secret = new_secret()
        changed = {"hash": hash_secret(secret), "secret": None}
        found: list[KeySettings] = []

        def replace(keys: list[KeySettings]) -> list[KeySettings]:
            found.append(_find(keys, name).model_copy(update=changed))
            return [found[0] if key.name == name else key for key in keys]

        self._change(replace)
        return secret, found[0]

    def _change(self, change: Callable[[list[KeySettings]], list[KeySettings]]) -> None:
        with _locked(self.path):
            keys = change(list(self.read()))
            rows = [key.model_dump(mode="json", exclude_defaults=True) for key in keys]
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


def _find(keys: list[KeySettings], name: str) -> KeySettings:
    for key in keys:
        if key.name == name:
            return key
    raise unknown_name("key", name, [key.name for key in keys])
