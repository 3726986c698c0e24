"""Hashes of the code that measured figures depend on, so that none outlives what it is of."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

_ENDINGS = {".py", ".c"}


@cache
def code_fingerprint(*sources: str) -> str:
    """Return a hash of parts of this package's source, such as "moe" or "core/gating.py"."""
    return hash_of_sources(Path(str(files("crossroads"))), sources)


def hash_of_sources(package: Path, sources: Sequence[str]) -> str:
    """Return a hash of files and of folders' source under a folder: names and contents."""
    digest = hashlib.blake2b(digest_size=10)
    for source in sources:
        place = package / source
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in _ENDINGS:
                digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def hash_of_modules(defined: Iterable[Any]) -> str:
    """Return a hash of the files that classes or functions are defined in, wherever they are."""
    digest = hashlib.blake2b(digest_size=10)
    for one in defined:
        digest.update(Path(inspect.getfile(one)).read_bytes())
    return digest.hexdigest()
