"""Where a figure was made: interpreter, machine kind and library versions. No names, no paths."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_LIBRARIES = ("crossroads", "numpy", "scipy", "lightgbm", "pyarrow", "tokenizers")


def machine(libraries: Sequence[str] = _LIBRARIES) -> dict[str, Any]:
    """Return plain data: python, system, cpu architecture and count, versions of ``libraries``."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": {name: v for name in libraries if (v := _version(name)) is not None},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
