"""The tensors of an adapter's file: shapes first, values when they are asked for.

``adapter_model.safetensors`` is mapped, not read; ``adapter_model.bin`` is opened with
``weights_only=True``, which runs no code of the file.
"""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.core.errors import InputError

WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# What torch's reader raises for pickles with wrong bytes in them, beside its own errors.
_BROKEN = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError,
    AssertionError, OverflowError, struct.error,
)  # fmt: skip


class TensorFile(Mapping[str, Tensor]):
    """Name -> tensor of one file.

    Raises InputError for a file that is cut off, holds something else than tensors, or is no such
    file at all.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._opened: Any = None
        self._loaded: dict[str, Tensor] = {}
        if file.suffix == ".safetensors":
            self._opened = _mapped(file)
            self._names = tuple(sorted(self._opened.keys()))
        else:
            self._loaded = _unpickled(file)
            self._names = tuple(sorted(self._loaded))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        found: Tensor = self._opened.get_tensor(name) if self._opened else self._loaded[name]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        if self._opened:
            return tuple(self._opened.get_slice(name).get_shape())
        return tuple(self._loaded[name].shape)

    def fault(self, name: str) -> str:
        """Return what is wrong with a tensor's values, or nothing."""
        values = self[name]
        if not values.is_floating_point():
            return f"expected floating-point numbers, found {values.dtype}"
        finite = torch.isfinite(values.float() if values.element_size() == 1 else values)
        return "" if bool(finite.all()) else f"{int((~finite).sum())} of its values are not finite"


def weights_file(folder: Path) -> Path:
    """Return the file of an adapter's tensors. Raises InputError where there is none."""
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: holds neither {' nor '.join(WEIGHTS_FILES)}; is it an adapter?")


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors. Raises OSError where the disk does not take them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    owned = {name: values.detach().cpu().contiguous().clone() for name, values in tensors.items()}
    try:
        save_file(owned, str(file), metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _mapped(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="pt")
    except SafetensorError as error:
        size = file.stat().st_size
        raise InputError(
            f"{file}: cut off or no safetensors file ({size} bytes: {error}); fetch it again"
        ) from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error}") from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():  # of foreign pickle protocols, refused or not
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file}: holds more than tensors, and opening such a file can run code; ask for "
            "adapter_model.safetensors"
        ) from error
    except _BROKEN as error:
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise InputError(f"{file}: cut off or no file of tensors ({reason})") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: expected tensors by name, got {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str):
            raise InputError(f"{file}: expected tensors by name, got {name!r} for a name")
        if not isinstance(value, Tensor):
            raise InputError(f"{file}: {name}: expected a tensor, got {type(value).__name__}")
    return found
