"""Low-rank adapters on linear layers: y = W x + (alpha / R) B A x, W frozen.

LoRA (Hu et al. 2021, arXiv 2106.09685). A starts Gaussian, B zero, so that a new adapter changes
nothing. Shapes: N rows, D inputs, F outputs, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crossroads.core.errors import InputError
from crossroads.core.files import replacing

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
FIRST_LAYER = 10  # of 30: what is below stays as it is, and needs no backward pass


class LoraLinear(nn.Module):  # type: ignore[misc]
    """A frozen linear layer and its low-rank correction, in the type of the input."""

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.down_RD = nn.Parameter(torch.zeros(rank, base.in_features))
        self.up_FR = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        low_NR = nn.functional.linear(x_ND, (self.scale * self.down_RD).to(x_ND.dtype))
        change_NF = nn.functional.linear(low_NR, self.up_FR.to(x_ND.dtype))
        base_NF: torch.Tensor = self.base(x_ND)
        return base_NF + change_NF


def add_lora(
    model: nn.Module,
    *,
    rank: int = 12,
    alpha: float = 24.0,
    targets: Sequence[str] = TARGETS,
    first_layer: int = FIRST_LAYER,
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Wrap linear layers of a Llama model in place; return the adapter's parameters.

    ``targets`` are their names in each decoder layer from ``first_layer`` on. Raises
    InputError where no layer has such a name.
    """
    generator = torch.Generator().manual_seed(seed)
    for parent in list(model.get_submodule("model.layers")[first_layer:].modules()):
        for name in targets:
            base = getattr(parent, name, None)
            if isinstance(base, nn.Linear):
                layer = LoraLinear(base, rank=rank, alpha=alpha)
                nn.init.normal_(layer.down_RD, std=base.in_features**-0.5, generator=generator)
                setattr(parent, name, layer)
    found = dict(lora_parameters(model))
    if not found:
        raise InputError(f"no linear layer is named {' or '.join(targets)}; name others")
    return found


def lora_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the adapter's parameters by their names in the model."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            yield f"{name}.down", layer.down_RD
            yield f"{name}.up", layer.up_FR


def save_lora(path: Path, model: nn.Module, facts: dict[str, Any]) -> None:
    """Write the adapter as ``.npz`` in float16, with ``facts`` (rank, alpha, ... plain data)."""
    arrays = {n: p.detach().to(torch.float16).numpy() for n, p in lora_parameters(model)}
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, facts=text, **arrays)


def load_lora(path: Path, model: nn.Module) -> dict[str, Any]:
    """Add the adapter of a file to a model in place; return the file's facts.

    Raises InputError where the file is not one, or belongs to another model.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts: dict[str, Any] = json.loads(arrays.pop("facts").tobytes())
        parameters = add_lora(
            model,
            rank=facts["rank"],
            alpha=facts["alpha"],
            targets=facts["targets"],
            first_layer=facts["first_layer"],
        )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(arrays[name].astype(np.float32)))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{path.name}: not an adapter of this model; train one with benchmarks/prompts/"
            "arch_router.py --train"
        ) from error
    return facts
