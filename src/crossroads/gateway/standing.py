"""What the workers of one gateway serve by, kept while its files change.

A worker that takes the place of a dead one begins with what the others serve: the configuration
that was last right, with the pool, keys, prices and routers of that moment. What has become of the
files since then it finds out like all others, by a reload, which a wrong file fails.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from crossroads.gateway.config import ServeConfig
from crossroads.gateway.governance import KeySettings
from crossroads.gateway.settings import Section
from crossroads.prompts.pool import Pool

if TYPE_CHECKING:
    from crossroads.gateway.build import Built

logger = logging.getLogger(__name__)

Mark = tuple[str, int, int]  # a file, when it changed (ns), its size in bytes


class Standing(Section):
    """A gateway's configuration as it is served, and what its files held.

    Attributes
    ----------
    config : with what only a restart changes as it was at the first start
    keys : of ``governance.keys_file``; those that are right
    prices : of ``governance.prices_file``: USD per input token, output token and call, by model
    routers : copies of the artefacts, by the folder that the configuration names
    marks : of the files when they were read
    note : what will only change with a restart
    """

    config: ServeConfig
    pool: Pool
    keys: tuple[KeySettings, ...] = ()
    prices: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    routers: dict[str, str] = Field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    note: str = ""

    def to_bytes(self) -> bytes:
        """Return JSON. It has the secrets of the configuration: not for a disk."""
        return self.model_dump_json(exclude_unset=True, by_alias=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Standing:
        return cls.model_validate_json(data)


def folders_of(config: ServeConfig) -> list[str]:
    """Return the folders of the routers that a configuration names."""
    found = (getattr(policy, "router", None) for policy in config.all_policies.policies.values())
    return sorted({folder for folder in found if folder is not None})


def marks_of(config: ServeConfig) -> tuple[Mark, ...]:
    """Return what tells the files that a configuration names from later versions of them."""
    names = [] if config.pool is None else [Path(config.pool)]
    return marked(names) + tuple(mark for each in folders_of(config) for mark in _inside(each))


def marked(paths: Iterable[Path]) -> tuple[Mark, ...]:
    """Return the marks of those files that are there."""
    found = []
    for path in paths:
        with suppress(OSError):
            facts = path.stat()
            found.append((str(path), facts.st_mtime_ns, facts.st_size))
    return tuple(found)


def _inside(folder: str) -> tuple[Mark, ...]:
    return marked(sorted(Path(folder).glob("*")))


class Keeper:
    """Hands what is served to whoever keeps it, with copies of the routers.

    Parameters
    ----------
    tell : takes ``Standing.to_bytes``; may wait
    folder : for the copies
    """

    def __init__(self, tell: Callable[[bytes], None], folder: Path) -> None:
        self._tell = tell
        self._folder = folder
        self._copies: dict[str, tuple[tuple[Mark, ...], Path]] = {}
        self._num_copies = 0

    def keep(self, built: Built, marks: tuple[Mark, ...], *, note: str = "") -> None:
        """Hand on a snapshot that serves; ``marks`` are from before its files were read."""
        before = dict(self._copies)
        standing = Standing(
            config=built.config,
            pool=built.pool,
            keys=built.governor.entries.keys,
            prices=dict(built.prices.listed),
            routers=self._copied(built.config, marks),
            marks=marks,
            note=note,
        )
        self._tell(standing.to_bytes())
        for name, (_, old) in before.items():  # nobody is told of them any more
            if self._copies.get(name, (None, None))[1] != old:
                shutil.rmtree(old, ignore_errors=True)

    def _copied(self, config: ServeConfig, marks: tuple[Mark, ...]) -> dict[str, str]:
        """Copy the routers that changed; one that changes meanwhile is read anew soon, and kept
        then."""
        copies = {}
        for folder in folders_of(config):
            served = tuple(mark for mark in marks if Path(mark[0]).parent == Path(folder))
            if folder in self._copies and self._copies[folder][0] == served:
                copies[folder] = self._copies[folder]
                continue
            target = self._folder / f"router-{self._num_copies}"
            self._num_copies += 1
            try:
                shutil.copytree(folder, target)
            except (OSError, shutil.Error) as error:
                logger.warning("router %s has no copy for a worker to come: %s", folder, error)
                continue
            if _inside(folder) == served:
                copies[folder] = served, target
        self._copies = copies
        return {folder: str(target) for folder, (_, target) in copies.items()}
