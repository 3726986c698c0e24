"""FlyLoRA adapters as files: B, the biases d, and the seed from which A is made again.

A file of safetensors with a tensor "<layer>.b" (outputs, ranks) for every layer and, where given,
"<layer>.d" (ranks,); its metadata hold the numbers of ``fly.fly_bank``. A is not stored, so a file
takes about half of a LoRA's of the same rank.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.fly import fly_bank
from crossroads.adapters.routers.flylora import FlyLoRA
from crossroads.core.errors import InputError, UsageError
from crossroads.core.files import replacing

_FORMAT = "crossroads-flylora 1"
_ABOUT = {"seed": int, "ranks": int, "k": int, "density": float, "alpha": float, "name": str}


def save_fly(
    path: Path,
    bank: AdapterBank,
    router: FlyLoRA | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write one adapter of ``fly_bank``, and the biases of the router that was trained with it.

    Raises InputError for a bank that was not made by ``fly_bank`` or whose A is not that of its
    seed any more, and for a router that was prepared for another bank.
    """
    from safetensors.torch import save_file

    about = _about(bank)
    tensors: dict[str, Tensor] = {}
    for layer, module in bank.layers.items():
        tensors[f"{layer}.b"] = module.b_EOR.detach()[:, :, 0].T.to(dtype).contiguous()
        if router is not None:
            tensors[f"{layer}.d"] = _bias(router, layer, bank.n_experts)
    sizes = {layer: (module.inputs, module.outputs) for layer, module in bank.layers.items()}
    again = _made(about, sizes)
    for layer, module in bank.layers.items():
        if not torch.equal(again.layers[layer].a_ERI, module.a_ERI):
            raise InputError(f"flylora: A of {layer} is not the one of its seed; save it as a LoRA")
    metadata = {
        "format": _FORMAT,
        "adapter": json.dumps(about),
        "inputs": json.dumps({layer: size[0] for layer, size in sizes.items()}),
    }
    with replacing(path) as draft:
        save_file(tensors, draft, metadata=metadata)


def load_fly(path: Path) -> tuple[AdapterBank, dict[str, Tensor]]:
    """Return the adapter and the biases by layer, empty where none were saved.

    Raises InputError for a file that ``save_fly`` did not write.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}; save the adapter again") from error
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path}: is no FlyLoRA adapter; write one with save_fly")
    about = _checked(f"{path}: adapter", _plain(path, metadata, "adapter"))
    inputs: dict[str, int] = _plain(path, metadata, "inputs")
    sizes = {
        layer: _size(path, layer, width, about["ranks"], tensors) for layer, width in inputs.items()
    }
    if not sizes:
        raise InputError(f"{path}: inputs: expected the inputs of one layer or more, found none")
    try:
        bank = _made(about, sizes)
    except UsageError as error:
        raise InputError(f"{path}: adapter: {error}") from error
    for layer, module in bank.layers.items():
        module.b_EOR.data[:, :, 0] = tensors[f"{layer}.b"].T.to(module.b_EOR.dtype)
    return bank, {layer: tensors[f"{layer}.d"] for layer in inputs if f"{layer}.d" in tensors}


def _plain(path: Path, metadata: dict[str, str], field: str) -> dict[str, Any]:
    text = metadata.get(field, "nothing")
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    if not isinstance(found, dict):
        raise InputError(f"{path}: {field}: expected a JSON object, found {text!r}")
    return found


def _checked(where: str, about: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of an adapter. Raises InputError for missing, unknown and wrong ones."""
    if about.keys() != _ABOUT.keys():
        raise InputError(f"{where}: expected {', '.join(_ABOUT)}, found {', '.join(about)}")
    for field, kind in _ABOUT.items():
        value = about[field]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"{where}: {field}: expected {kind.__name__}, found {value!r}")
    return about


def _size(
    path: Path, layer: str, inputs: object, ranks: int, tensors: dict[str, Tensor]
) -> tuple[int, int]:
    """Return inputs and outputs of a layer, its tensors being of these ranks."""
    if type(inputs) is not int or inputs < 1:
        raise InputError(
            f"{path}: inputs: {layer}: expected a whole number above 0, found {inputs!r}"
        )
    found = tensors.get(f"{layer}.b")
    if found is None or found.ndim != 2 or found.shape[1] != ranks:
        shape = "none" if found is None else tuple(found.shape)
        raise InputError(
            f"{path}: {layer}.b: expected a shape of (outputs, {ranks}), found {shape}"
        )
    bias = tensors.get(f"{layer}.d")
    if bias is not None and bias.shape != (ranks,):
        raise InputError(
            f"{path}: {layer}.d: expected a shape of ({ranks},), found {tuple(bias.shape)}"
        )
    return inputs, len(found)


def _bias(router: FlyLoRA, layer: str, ranks: int) -> Tensor:
    bias_R = router.bias_of(layer)
    if bias_R.shape != (ranks,):
        raise InputError(
            f"flylora: the router has biases of {len(bias_R)} ranks, the adapter has {ranks}; "
            "prepare a router for the adapter alone"
        )
    return bias_R.clone()


def _about(bank: AdapterBank) -> dict[str, Any]:
    first = bank.cards[0]
    info = first.info.get("flylora")
    found: dict[str, Any] = dict(info) if isinstance(info, dict) else {}
    if not found or found.get("ranks") != bank.n_experts:
        raise InputError("flylora: expected one adapter as fly_bank makes it; take one of a union")
    scale = float(next(iter(bank.layers.values())).scale_E[0])
    name = first.name.rpartition("-")[0]
    about = {**found, "alpha": scale * found["ranks"], "name": name}
    return _checked(f"flylora: info of expert {first.name!r}", about)


def _made(about: dict[str, Any], sizes: dict[str, tuple[int, int]]) -> AdapterBank:
    return fly_bank(sizes, **about)
