"""Compiled kernels of the CPU path: optional, built on request, found afterwards.

SiLU(gate) * up, its gradient, and the gather-weigh-dot of the output's gradient are each one pass
over memory in C where torch makes two to six; a whole bank without a gradient is one call where
torch makes three an expert. Nothing here is ever needed: without the built file
the same is computed in torch. ``python -m crossroads.core.dispatch`` builds it (one second), as
``crossroads.core.native`` says. Importing builds nothing.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.core.native import Source

# Threads are those of the OpenMP runtime that torch has loaded: compiled for, not linked with one.
_FLAGS = (
    "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only",
    "-ffp-contract=fast",
)  # fmt: skip
# Compilers choose half of it by themselves.
_WIDE = ("-mprefer-vector-width=512",) if platform.machine() in {"x86_64", "AMD64"} else ()
SOURCE = Source(Path(__file__).with_name("kernels.c"), (*_FLAGS, *_WIDE))
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Kernels:
    """The loaded kernels of one type."""

    swiglu: Any
    swiglu_back: Any
    weigh_back: Any
    swiglu_bank: Any


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
    return None if _is_watched(tensor) else loaded(tensor.dtype)


def _is_watched(tensor: Tensor) -> bool:
    """Return whether somebody follows operations, who would not see those of a kernel."""
    modes: int = torch._C._len_torch_dispatch_stack()
    return modes > 0 or torch._is_functional_tensor(tensor)


@cache
def loaded(dtype: torch.dtype) -> Kernels | None:
    """Return the kernels of a type from the built file, None if it is absent or switched off."""
    library = SOURCE.load()
    if library is None:
        return None
    pointer, count, name = ctypes.c_void_p, ctypes.c_int64, _NAMES[dtype]
    # Tensors a kernel reads and writes, and sizes.
    shapes = {"swiglu": (2, 2), "swiglu_back": (4, 2), "weigh_back": (6, 2), "swiglu_bank": (8, 8)}
    found = {}
    for kernel, (tensors, sizes) in shapes.items():
        function = getattr(library, f"{kernel}_{name}")
        function.argtypes = [pointer] * tensors + [count] * sizes
        function.restype = count if kernel == "swiglu_bank" else None
        found[kernel] = function
    return Kernels(**found)
