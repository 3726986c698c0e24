"""The folder a judged program works in: made, measured and removed whatever it put there."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOST_BYTES = 16 << 20
MOST_ENTRIES = 1000


@contextmanager
def workspace() -> Iterator[Path]:
    """Yield an empty folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        with suppress(OSError):
            _remove(folder)


def is_too_large(folder: Path) -> bool:
    """Whether a folder holds more than the bounds, or anything that cannot be measured."""
    size = entries = 0
    pending = [os.fspath(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as found:
                for entry in found:
                    entries += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entries > MOST_ENTRIES or size > MOST_BYTES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError:
            return True
    return False


def _remove(folder: Path) -> None:
    """Remove a folder of any depth: what is nested is moved up first, so no path grows long."""
    mark, moved = secrets.token_hex(8), 0
    while folders := _without_files(folder):
        for outer in folders:
            for inner in _without_files(outer):
                inner.chmod(0o700)
                inner.rename(folder / f"{mark}-{moved}")
                moved += 1
            outer.rmdir()
    folder.rmdir()


def _without_files(folder: Path) -> list[Path]:
    """Remove the files of a folder; return the folders in it."""
    folder.chmod(0o700)
    folders = []
    with os.scandir(folder) as found:
        for entry in list(found):
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            else:
                Path(entry.path).unlink()
    return folders
