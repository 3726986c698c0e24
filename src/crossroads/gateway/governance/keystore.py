"""Keys that are made and revoked while the gateway serves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from crossroads.core.errors import InputError, unknown_name
from crossroads.gateway.governance.keyfile import KeyFile
from crossroads.gateway.governance.settings import KeySettings

# What a new key may be given, and what is made here.
_MADE = ("name", "hash", "secret", "created")
_FIELDS = tuple(field for field in KeySettings.model_fields if field not in _MADE)


class KeyStore(Protocol):
    """What the admin API needs. All raise InputError or UsageError, in one line.

    A change is in force here when the call returns, and in the other workers within a second or
    two.
    """

    def list(self) -> list[dict[str, Any]]:
        """Return all keys as plain data, without secrets."""
        ...

    async def create(self, name: str, /, **fields: Any) -> str:
        """Add a key (fields as in ``KeySettings``); return its secret, which is kept nowhere."""
        ...

    async def rotate(self, name: str) -> str:
        """Return a new secret; the old one is refused from now on."""
        ...

    async def revoke(self, name: str) -> None:
        """Remove a key."""
        ...


class FileKeyStore:
    """Implements ``KeyStore`` over ``keys.yaml``.

    Parameters
    ----------
    file : None where the configuration names none: then nothing can be changed
    fixed : keys of the configuration
    reload : called after a change, to read the file again
    rows : returns all keys as plain data
    teams : returns the teams a key may belong to
    """

    def __init__(
        self,
        file: KeyFile | None,
        *,
        fixed: tuple[KeySettings, ...],
        reload: Callable[[], Awaitable[None]],
        rows: Callable[[], list[dict[str, Any]]],
        teams: Callable[[], frozenset[str]],
    ) -> None:
        self._file = file
        self._fixed = frozenset(key.name for key in fixed)
        self._reload = reload
        self._rows = rows
        self._teams = teams

    def list(self) -> list[dict[str, Any]]:
        return self._rows()

    async def create(self, name: str, /, **fields: Any) -> str:
        file = self._writable(name)
        for field in fields:
            if field not in _FIELDS:
                raise unknown_name("field", field, ("name", *_FIELDS))
        team = fields.get("team")
        if team is not None and team not in self._teams():
            raise InputError(f"key {name!r}: no team {team!r}; add it to governance.teams")
        secret, _ = await asyncio.to_thread(file.create, name, **fields)
        await self._reload()
        return secret

    async def rotate(self, name: str) -> str:
        file = self._writable(name)
        secret, _ = await asyncio.to_thread(file.rotate, name)
        await self._reload()
        return secret

    async def revoke(self, name: str) -> None:
        file = self._writable(name)
        await asyncio.to_thread(file.revoke, name)
        await self._reload()

    def _writable(self, name: str) -> KeyFile:
        if name in self._fixed:
            raise InputError(f"key {name!r} is in the configuration; change it there")
        if self._file is None:
            raise InputError("no file for keys; set governance.keys_file, then reload")
        return self._file
