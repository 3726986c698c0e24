"""Tiny random models of four kinds, and adapters for them written by PEFT itself."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import Expert
from crossroads.adapters.base_layers import layer_size
from tests.adapters import toys

SIZES = ("num_hidden_layers", "hidden_size")  # settings of the model, not of the adapter
KINDS = ("llama", "t5", "bert", "gpt2")
TARGETS: dict[str, list[str]] = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "t5": ["q", "v", "wo"],
    "bert": ["query", "value", "output.dense"],
    "gpt2": ["c_attn", "c_fc"],
}


def base(kind: str = "llama", **sizes: int) -> Any:
    """Return the same random model every time."""
    return _BUILD[kind](7, **sizes)


def inputs(kind: str = "llama") -> dict[str, Tensor]:
    tokens = toys.ids(2, 7)
    return {"input_ids": tokens, **({"decoder_input_ids": tokens[:, :3]} if kind == "t5" else {})}


def logits(model: nn.Module, kind: str = "llama") -> Tensor:
    with torch.no_grad():
        output = model(**inputs(kind))
    found: Tensor = output.last_hidden_state if kind == "bert" else output.logits
    return found


def save_with_peft(folder: Path, kind: str = "llama", **settings: Any) -> Tensor:
    """Write a PEFT adapter with random factors; return the logits PEFT computes with it."""
    made, expected = _made_by_peft(kind, json.dumps(settings))
    shutil.copytree(made.name, folder, dirs_exist_ok=True)
    return expected


@cache
def _made_by_peft(kind: str, written: str) -> tuple[TemporaryDirectory[str], Tensor]:
    import peft

    settings = {"r": 4, "target_modules": TARGETS[kind], **json.loads(written)}
    sizes = {name: settings.pop(name) for name in SIZES if name in settings}
    folder = TemporaryDirectory()
    generator = torch.Generator().manual_seed(settings.pop("seed", 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base(kind, **sizes), peft.LoraConfig(**settings)).eval()
        for name, values in model.named_parameters():
            if values.requires_grad and "lora_" in name:
                values.data.normal_(std=0.3, generator=generator)
        model.save_pretrained(folder.name)
    return folder, logits(model, kind)


def load_with_peft(folder: Path, kind: str = "llama") -> Tensor:
    """Return the logits of PEFT's model with an adapter from a folder."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(peft.PeftModel.from_pretrained(base(kind), str(folder)).eval(), kind)


def with_delta(expert: Expert, kind: str = "llama") -> Tensor:
    """Return the logits of the base model with an expert's deltas added to its weights."""
    model = base(kind)
    for layer, lora in expert.modules.items():
        module = model.get_submodule(layer)
        delta_OI = lora.delta_OI()
        assert layer_size(module) == (delta_OI.shape[1], delta_OI.shape[0])
        module.weight.data += delta_OI.T if kind == "gpt2" else delta_OI
    return logits(model, kind)


def change_config(folder: Path, **settings: Any) -> None:
    """Change settings in an adapter's configuration; None removes one."""
    file = folder / "adapter_config.json"
    before = {**json.loads(file.read_text("utf-8")), **settings}
    file.write_text(json.dumps({key: v for key, v in before.items() if v is not None}), "utf-8")


def change_tensors(folder: Path, change: dict[str, Tensor | None]) -> None:
    """Add, replace or (None) remove tensors of an adapter's file."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = {**load_file(file), **change}
    save_file({key: v.contiguous() for key, v in tensors.items() if v is not None}, file)


_BUILD: dict[str, Any] = {
    "llama": toys.tiny_llama,
    "t5": toys.tiny_t5,
    "bert": toys.tiny_bert,
    "gpt2": toys.tiny_gpt2,
}
