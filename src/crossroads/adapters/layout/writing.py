"""Experts out again, as adapters that ``PeftModel.from_pretrained`` loads."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.adapters.bank import Expert, LoRA
from crossroads.adapters.layout.configuration import CONFIG_FILE
from crossroads.adapters.layout.folders import replacing_folder
from crossroads.adapters.layout.reading import PREFIX
from crossroads.adapters.layout.tensors import WEIGHTS_FILES, save_tensors

_KEPT_SETTINGS = ("task_type", "fan_in_fan_out", "revision")


def export_expert(
    expert: Expert,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    task_type: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write an expert as a folder in PEFT's layout, whole or not at all.

    Scales are written as lora_alpha, with use_rslora where that gives them exactly; scales of
    neither form go into B.

    Raises InputError where the folder exists and is not to be overwritten.

    Parameters
    ----------
    dtype : of the file; None = the expert's
    task_type : PEFT's, such as "CAUSAL_LM"; by default that of the file it was read from
    """
    with replacing_folder(Path(folder), mark=CONFIG_FILE, overwrite=overwrite) as new:
        write_expert(expert, new, dtype=dtype, task_type=task_type)


def write_expert(
    expert: Expert, folder: Path, *, dtype: torch.dtype | None = None, task_type: str | None = None
) -> None:
    """Write an expert's two files into a folder that is there."""
    rslora, alphas = _alphas(expert.modules)
    tensors: dict[str, Tensor] = {}
    for layer, lora in expert.modules.items():
        b_OR = lora.b_OR if alphas else lora.scale * lora.b_OR.float()
        for factor, values in (("A", lora.a_RI), ("B", b_OR)):
            tensors[f"{PREFIX}{layer}.lora_{factor}.weight"] = values.to(dtype or lora.a_RI.dtype)
    ranks = {layer: lora.rank for layer, lora in expert.modules.items()}
    settings = _settings(expert, ranks, alphas or ranks, rslora)
    if task_type is not None:
        settings["task_type"] = task_type
    save_tensors(folder / WEIGHTS_FILES[0], tensors)
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _alphas(modules: Mapping[str, LoRA]) -> tuple[bool, dict[str, int]]:
    """Return whether scales are alpha / sqrt(r), and whole alphas that give them in float32.

    No alphas where neither form gives all of them.
    """
    for rslora in (False, True):
        found = {}
        for layer, lora in modules.items():
            below = math.sqrt(lora.rank) if rslora else lora.rank
            alpha = round(lora.scale * below)
            if torch.tensor(alpha / below) != torch.tensor(lora.scale):
                break
            found[layer] = alpha
        else:
            return rslora, found
    return False, {}


def _settings(
    expert: Expert, ranks: Mapping[str, int], alphas: Mapping[str, int], rslora: bool
) -> dict[str, Any]:
    before = expert.info.get("configuration", {})
    kept = {key: before[key] for key in _KEPT_SETTINGS if before.get(key) is not None}
    rank, rank_pattern = _pattern(ranks)
    alpha, alpha_pattern = _pattern(alphas)
    return {
        "peft_type": "LORA",
        "task_type": None,
        **kept,
        "base_model_name_or_path": expert.base_model or None,
        "inference_mode": True,
        "bias": "none",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": rslora,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": sorted(ranks),
    }


def _pattern(values: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Return the commonest value, and where layers differ a pattern that names every layer.

    The first key that matches the end of a name counts, so longer names come first.
    """
    common = Counter(values.values()).most_common(1)[0][0]
    if len(set(values.values())) == 1:
        return common, {}
    ordered = sorted(values, key=lambda layer: (-layer.count("."), layer))
    return common, {layer: values[layer] for layer in ordered}
