"""Several workers, one set of figures: each writes what it counted, any of them adds it up.

A worker's snapshot is a file in a shared directory, written anew every second or so and once more
at the end. When a worker is gone its counters stay and its gauges go; a worker that is killed loses
what it counted since its last snapshot.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from crossroads.core.files import replacing
from crossroads.gateway.telemetry.snapshot import Snapshot, merge

_ENDED = "ended.json"  # sum of the counters of workers that are gone
_FRESH = 5.0  # snapshots a gauge outlives the last one written, in periods


class SharedSnapshots:
    """The directory of one gateway's workers.

    Parameters
    ----------
    directory : on a local disk; made where it is missing
    period : seconds between two snapshots of a worker
    """

    def __init__(self, directory: Path, *, period: float = 1.0) -> None:
        self._directory = directory
        self._period = period
        self._name = f"worker-{os.getpid()}-{secrets.token_hex(4)}.json"
        directory.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._fold()

    def write(self, snapshot: Snapshot) -> None:
        """Publish this worker's counts. Raises InputError where the disk is full."""
        data = {"pid": os.getpid(), "time": time.time(), **snapshot.to_dict()}
        with replacing(self._directory / self._name) as temporary:
            temporary.write_bytes(orjson.dumps(data))

    def close(self, snapshot: Snapshot) -> None:
        """Publish the last counts and leave the gauges out."""
        self.write(Snapshot(snapshot.counters, snapshot.histograms))

    def others(self) -> Snapshot:
        """Return the sum of all other workers, those that are gone included."""
        with self._locked():
            paths = [path for path in self._paths() if path.name != self._name]
            return merge(_read(path, self._period) for path in paths)

    def _fold(self) -> None:
        """Put the counts of workers that are gone into one file, so that files do not pile up."""
        ended = self._directory / _ENDED
        for name in self._folded():
            (self._directory / name).unlink(missing_ok=True)
        gone = [path for path in self._paths() if path == ended or not _is_alive(path)]
        whole = merge(_read(path, 0) for path in gone)
        names = [path.name for path in gone if path != ended]
        with replacing(ended) as temporary:
            temporary.write_bytes(orjson.dumps({"folded": names, **whole.to_dict()}))
        for name in names:
            (self._directory / name).unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Return the files that count: not those already in the sum of the ended ones."""
        folded = self._folded()
        return [path for path in sorted(self._directory.glob("*.json")) if path.name not in folded]

    def _folded(self) -> list[str]:
        """Return the files whose removal may have been cut short."""
        with suppress(OSError, ValueError, KeyError):
            found: list[str] = orjson.loads((self._directory / _ENDED).read_bytes())["folded"]
            return found
        return []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read(path: Path, period: float) -> Snapshot:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        data = orjson.loads(path.read_bytes())
        snapshot = Snapshot.from_dict(data)
        is_fresh = time.time() - float(data.get("time", 0)) <= _FRESH * period
        if not is_fresh or not _is_alive(path):
            snapshot.gauges = {}
        return snapshot
    return Snapshot()


def _is_alive(path: Path) -> bool:
    """Whether the worker whose file this is still runs."""
    try:
        os.kill(int(path.name.split("-")[1]), 0)
    except ProcessLookupError:
        return False
    except (IndexError, ValueError):
        return False
    except PermissionError:
        return True
    return True
