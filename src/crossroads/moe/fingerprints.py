"""A hash of the code that measured figures depend on, so that none outlives what it is of."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

# Layers and trainer, the kernels that run them, backbones, and the arithmetic they share.
_SOURCES = (
    "moe",
    "models",
    "core/dispatch",
    "core/gating.py",
    "core/losses.py",
    "core/routed.py",
)
_ENDINGS = {".py", ".c"}


@cache
def code_fingerprint() -> str:
    """Return a hash of the source of routed layers, their training and their backbones."""
    return hash_of_sources(Path(str(files("crossroads"))))


def hash_of_sources(package: Path) -> str:
    """Return a hash of that source under a folder: names and contents."""
    digest = hashlib.blake2b(digest_size=10)
    for source in _SOURCES:
        place = package / source
        found = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in found:
            if path.suffix in _ENDINGS:
                digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
