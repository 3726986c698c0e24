"""Tells when a file was edited or replaced."""

from __future__ import annotations

from pathlib import Path


class FileWatch:
    """``has_changed`` compares inode, size and time of change with those it saw last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._look()

    def has_changed(self) -> bool:
        """Return whether the file is another than at the last call; a missing file is not."""
        found = self._look()
        if found is None or found == self._seen:
            return False
        self._seen = found
        return True

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
