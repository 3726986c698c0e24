"""The layers of a base model that can be adapted, and their sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from crossroads.core.errors import InputError


def layer_size(layer: nn.Module) -> tuple[int, int] | None:
    """Return the inputs and outputs of a linear layer, None for a layer of another kind.

    GPT-2's ``Conv1D`` counts: its weight is stored (inputs, outputs), but factors of adapters have
    the same layout for both.
    """
    inputs, outputs = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int):
        return inputs, outputs
    if is_conv1d(layer):
        inputs, outputs = layer.weight.shape
        return int(inputs), int(outputs)
    return None


def sizes_of(model: nn.Module, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the linear layers whose names end in one of ``targets``.

    By full name. Raises InputError where there is none.
    """
    found = {
        name: size
        for name, layer in model.named_modules()
        if name.rpartition(".")[2] in targets and (size := layer_size(layer)) is not None
    }
    if not found:
        raise InputError(f"no linear layer is named {' or '.join(targets)}; name others")
    return found


def is_conv1d(layer: nn.Module) -> bool:
    """Return whether a layer is GPT-2's kind of linear layer."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers.")
