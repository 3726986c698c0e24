"""Python source text: the top-level modules of the running Python's standard library.

About 160 files under the PSF licence. They change with the version, so figures of two versions are
not comparable; ``Source.name`` says which one it is.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crossroads.core.errors import UnavailableError


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Text by file name, sorted."""

    name: str
    files: Mapping[str, str]


def load(folder: Path | None = None) -> Source:
    """Return the ``*.py`` files of a folder, by default the standard library.

    Raises UnavailableError where there are none, as in stripped installations.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    files = {path.name: path.read_text("utf-8", "replace") for path in sorted(folder.glob("*.py"))}
    if not files:
        raise UnavailableError(
            f"{folder}: no Python source files; install the standard library's sources"
        )
    return Source(name=f"python-{platform.python_version()}", files=files)
