"""Folders that appear whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossroads.core.errors import InputError
from crossroads.core.files import unwritable


@contextmanager
def replacing_folder(folder: Path, *, mark: str, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` to write to; it becomes ``folder`` at the end.

    When the body fails nothing has changed. A folder that is there already is replaced only with
    ``overwrite``, and only when it holds a file called ``mark``: it is then one of ours.

    Raises InputError, also for a disk that cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise InputError(f"{folder}: exists already; choose another folder, or overwrite it")
        if not (folder / mark).is_file():
            raise InputError(f"{folder}: holds no {mark}, so it is not overwritten")
    new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        new.mkdir(parents=True)
        yield new
        _swap(new, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_suffix(".old")  # what is left of a run killed between these two lines
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
