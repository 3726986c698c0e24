"""The file of finished cells, from which an interrupted collection continues."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crossroads.core.errors import InputError
from crossroads.core.journal import append_line, read_lines


class PartialFile:
    """Finished cells, one JSON object a line, each on the disk before ``append`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the file alone; the kernel lets go of it when the process ends, however it does.

        Raises InputError where it is held already. Systems other than POSIX have no such lock.
        """
        if os.name != "posix":
            yield
            return
        path = self.path.with_suffix(".lock")
        descriptor = _locked(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the finished cells by key; a torn last line is cut off."""
        remedy = "delete that line, or the file to start again"
        kept = read_lines(self.path, lambda cell: (cell["cell"], cell), remedy=remedy)
        return dict(kept)

    def append(self, cell: Mapping[str, Any]) -> None:
        """Add a finished cell. Raises InputError where the disk does not take it."""
        append_line(self.path, cell)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _locked(path: Path) -> int:
    """Return the descriptor of a lock file that is ours alone, made where there is none."""
    import fcntl

    try:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise
            with suppress(FileNotFoundError):  # removed by the process that held it
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            os.close(descriptor)
    except BlockingIOError as error:
        raise InputError(
            f"{path}: another collection writes this table; wait until it ends, or choose another "
            "--out"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be locked: {error.strerror}") from error
