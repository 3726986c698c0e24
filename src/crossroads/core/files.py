"""Files that appear whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EISDIR, ENOSPC
from pathlib import Path
from tempfile import TemporaryFile

from crossroads.core.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; it becomes ``path`` at the end.

    When the body fails the temporary file is removed and ``path`` stays as it was. An OSError
    becomes an InputError that names the file.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is never seen half-written. Raises InputError."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before long work is done for it; its folder is made.

    Raises InputError.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        temporary.touch()
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before long work, and without making it.

    Raises InputError.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the error of a file or folder that cannot be written, its remedy after the cause."""
    is_full = error.errno in {ENOSPC, EDQUOT}
    remedy = "free the disk, or choose another" if is_full else "choose a place you can write to"
    return InputError(f"{path}: cannot be written: {error.strerror or error}; {remedy}")
