"""Compiled row-wise kernels of the CPU path: optional, built on request, found afterwards.

SiLU(gate) * up, its gradient, and the gather-weigh-dot of the output's gradient are each one pass
over memory in C where torch makes two to six. Nothing here is ever needed: without the built file
the same is computed in torch. ``python -m crossroads.core.dispatch`` builds it (one second;
a C compiler: ``cc``, or what ``CC`` names) into the user's cache directory, or into the directory
``CROSSROADS_KERNELS`` names; every later process on this machine finds it there.
``CROSSROADS_KERNELS=off`` leaves it unused. Importing builds nothing.

The file's name carries a digest of source, flags and processor, so a changed one is never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

from crossroads.core.errors import UnavailableError

SOURCE = Path(__file__).with_name("kernels.c")
VARIABLE = "CROSSROADS_KERNELS"
# Threads are those of the OpenMP runtime that torch has loaded: compiled for, not linked with one.
_FLAGS = (
    "-O3", "-std=c11", "-fPIC", "-fopenmp", "-march=native", "-fno-math-errno",
    "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only",
)  # fmt: skip
_WIDE = "-mprefer-vector-width=512"  # compilers choose half of it by themselves
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Kernels:
    """The loaded kernels of one type."""

    swiglu: Any
    swiglu_back: Any
    weigh_back: Any


_torch_only: ContextVar[bool] = ContextVar("torch_only", default=False)


@contextmanager
def torch_only() -> Iterator[None]:
    """Leave compiled kernels unused inside: for comparison, or to match a machine without them."""
    token = _torch_only.set(True)
    try:
        yield
    finally:
        _torch_only.reset(token)


def kernels_for(tensor: Tensor) -> Kernels | None:
    """Return the compiled kernels for a tensor's device and type, None where there are none."""
    if _torch_only.get() or tensor.device.type != "cpu" or tensor.dtype not in _NAMES:
        return None
    return loaded(tensor.dtype)


@cache
def loaded(dtype: torch.dtype) -> Kernels | None:
    """Return the kernels of a type from the built file, None if it is absent or switched off."""
    path = built_path()
    if path is None or not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        logging.getLogger(__name__).warning("%s is not used: %s", path, error)
        return None
    pointer, count, name = ctypes.c_void_p, ctypes.c_int64, _NAMES[dtype]
    shapes = {"swiglu": [pointer] * 2, "swiglu_back": [pointer] * 4, "weigh_back": [pointer] * 6}
    found = {}
    for kernel, pointers in shapes.items():
        function = getattr(library, f"{kernel}_{name}")
        function.argtypes, function.restype = [*pointers, count, count], None
        found[kernel] = function
    return Kernels(**found)


def built_path() -> Path | None:
    """Return where the built file is or would be, None where it is switched off."""
    where = os.environ.get(VARIABLE, "")
    if where == "off":
        return None
    folder = Path(where) if where else Path(platformdirs.user_cache_dir("crossroads")) / "kernels"
    facts = "\n".join([SOURCE.read_text("utf-8"), *_FLAGS, _WIDE, platform.machine(), _features()])
    return folder / f"dispatch-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.so"


def _features() -> str:
    """Return the instruction sets of this processor, where the system tells."""
    facts = Path("/proc/cpuinfo")
    if not facts.is_file():
        return platform.processor()
    lines = facts.read_text("utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def build() -> Path:
    """Compile the kernels and return the file; processes that run already do not see it.

    Raises UnavailableError without a compiler, where it fails, or where kernels are switched off.
    """
    path = built_path()
    if path is None:
        raise UnavailableError(f"{VARIABLE}=off switches compiled kernels off; unset it to build")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise UnavailableError("no C compiler: install gcc or clang, or name one in CC")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made, linked = Path(folder) / "kernels.o", Path(folder) / path.name
        wide = [_WIDE] if platform.machine() in {"x86_64", "AMD64"} else []
        _run([compiler, *_FLAGS, *wide, "-c", str(SOURCE), "-o", str(made)])
        _run([compiler, "-shared", str(made), "-o", str(linked)])
        linked.replace(path)
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise UnavailableError(f"{Path(command[0]).name} could not build the kernels: {first}")
