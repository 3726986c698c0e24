"""Mixtures of experts that other libraries trained as one adapter: their parts as a bank.

Three forms are read: Poly and multi-head routing of PEFT, the mixtures of MoE-PEFT (MixLoRA, MoLA,
LoRAMoE, DynMoLE), and HydraLoRA. What they route by comes back beside the bank.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.layout.configuration import CONFIG_FILE, MOE_PEFT, read_json
from crossroads.adapters.layout.reading import PREFIX
from crossroads.adapters.layout.tensors import TensorFile, weights_file
from crossroads.core.errors import InputError

_POLY = re.compile(r"(.+)\.(poly_lora_A|poly_lora_B|poly_router\.module_logits)")
_HYDRA = re.compile(r"(.+)\.lora_(A|B(\d+)|route)\.weight")
_MOE = re.compile(
    r"[^.]+\.(?P<layer>layers\.\d+\.(?:self_attn|mlp)(?:\.(?!experts|moe_gate)[^.]+)?)\."
    r"(?:(?:experts\.(?P<expert>\d+)\.)?lora_(?P<factor>[AB])|(?P<gate>moe_gate))\.weight"
)
_Parts = dict[str, dict[str, Tensor]]  # layer -> name of the part -> values


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """A mixture's experts, and what it routes by.

    Attributes
    ----------
    bank : the experts, numbered names
    gates : layer -> Poly's logits (tasks, heads, experts); otherwise (experts, inputs), the scores
        of experts being gate times input. One of MixLoRA's blocks serves all its layers
    plain : factors that are always on, where there are some
    settings : the file's
    """

    bank: AdapterBank
    gates: Mapping[str, Tensor]
    plain: Expert | None
    settings: Mapping[str, Any]


def read_poly(folder: Path | str) -> Mixture:
    """Read PEFT's Poly: ``heads`` of the bank are its splits; every scale is 1 / r.

    Its tensors are A (H, E, I/H, R), B (H, E, R, O/H) and logits (T, H E) of every layer. Put
    together with ``merge_factors`` and weights sigmoid(logits) divided by their sum.

    Raises InputError naming file, tensor, expected and found.
    """
    file, settings, tensors = _opened(folder, kinds={"POLY"})
    skills, heads, rank = (_number(file, settings, n) for n in ("n_skills", "n_splits", "r"))
    found: dict[str, dict[int, LoRA]] = {}
    gates: dict[str, Tensor] = {}
    for layer, parts in _parts(tensors, _POLY).items():
        a, b, logits = (
            _part(tensors.file, layer, parts, name)
            for name in ("poly_lora_A", "poly_lora_B", "poly_router.module_logits")
        )
        _check(tensors.file, f"{layer}.poly_lora_A", a, (heads, skills, None, rank))
        _check(tensors.file, f"{layer}.poly_lora_B", b, (heads, skills, rank, None))
        _check(tensors.file, f"{layer}.poly_router.module_logits", logits, (None, heads * skills))
        a_ERI = a.permute(1, 3, 0, 2).flatten(2)
        b_EOR = b.permute(1, 0, 3, 2).flatten(1, 2)
        found[layer] = {
            e: LoRA(a_RI=a_ERI[e], b_OR=b_EOR[e], scale=1 / rank) for e in range(skills)
        }
        gates[layer] = logits.unflatten(1, (heads, skills))
    bank = _bank(tensors.file, "skill", found, settings, heads=heads)
    return Mixture(bank=bank, gates=gates, plain=None, settings=settings)


def read_hydralora(folder: Path | str) -> Mixture:
    """Read HydraLoRA: one A and several B of every layer; experts share A, gates are its route.

    It computes W x + s sum_i softmax(G x)_i B_i A x with s = lora_alpha / r.

    Raises InputError naming file, tensor, expected and found.
    """
    file, settings, tensors = _opened(folder, kinds={"LORA"})
    num, rank = (_number(file, settings, name) for name in ("lora_nums", "r"))
    scale = _number(file, settings, "lora_alpha") / rank
    found: dict[str, dict[int, LoRA]] = {}
    gates: dict[str, Tensor] = {}
    for layer, parts in _parts(tensors, _HYDRA).items():
        a_RI, gate_EI = (_part(tensors.file, layer, parts, name) for name in ("A", "route"))
        _check(tensors.file, f"{layer}.lora_A", a_RI, (rank, None))
        _check(tensors.file, f"{layer}.lora_route", gate_EI, (num, a_RI.shape[1]))
        extra = parts.keys() - {"A", "route", *(f"B{i}" for i in range(num))}
        if extra:
            raise InputError(
                f"{tensors.file}: {layer}.lora_{min(extra)}: expected {num} factors B (lora_nums)"
            )
        found[layer] = {}
        for i in range(num):
            b_OR = _part(tensors.file, layer, parts, f"B{i}")
            _check(tensors.file, f"{layer}.lora_B{i}", b_OR, (None, rank))
            found[layer][i] = LoRA(a_RI=a_RI, b_OR=b_OR, scale=scale)
        gates[layer] = gate_EI
    bank = _bank(tensors.file, "head", found, settings)
    return Mixture(bank=bank, gates=gates, plain=None, settings=settings)


def read_mixlora(folder: Path | str, *, prefix: str = "model.") -> Mixture:
    """Read a mixture of MoE-PEFT: MixLoRA, MoLA, LoRAMoE or DynMoLE.

    ``prefix`` is what the base model's names have before ``layers``. Projections without experts
    are the mixture's ``plain`` part.

    Raises InputError naming file, tensor, expected and found.
    """
    file, settings, tensors = _opened(folder, kinds=MOE_PEFT)
    if settings.get("use_dora"):
        raise InputError(f"{file}: use_dora: DoRA is not supported; merge it, or train plain LoRA")
    num, rank, alpha = (
        _number(file, settings, name) for name in ("num_experts", "r", "lora_alpha")
    )
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    factors: dict[tuple[str, int | None], dict[str, Tensor]] = defaultdict(dict)
    gates: dict[str, Tensor] = {}
    for name in tensors:
        matched = _MOE.fullmatch(name)
        if not matched:
            raise _unknown(tensors, name)
        layer = prefix + matched["layer"]
        if matched["gate"]:
            _check(tensors.file, name, tensors[name], (num, None))
            gates[layer] = tensors[name].float()
            continue
        expert = None if matched["expert"] is None else int(matched["expert"])
        _check(
            tensors.file, name, tensors[name],
            (rank, None) if matched["factor"] == "A" else (None, rank),
        )  # fmt: skip
        factors[layer, expert][matched["factor"]] = tensors[name].float()
    found: dict[str, dict[int, LoRA]] = defaultdict(dict)
    plain: dict[str, LoRA] = {}
    for (layer, expert), parts in factors.items():
        a_RI, b_OR = (_part(tensors.file, layer, parts, name) for name in ("A", "B"))
        lora = LoRA(a_RI=a_RI, b_OR=b_OR, scale=scale)
        if expert is None:
            plain[layer] = lora
        else:
            found[layer][expert] = lora
    _check_experts(tensors.file, found, num)
    base = str(settings.get("base_model_name_or_path") or "")
    return Mixture(
        bank=_bank(tensors.file, "expert", found, settings),
        gates=_gates_by_layer(tensors.file, found, gates),
        plain=Expert(name="plain", modules=plain, base_model=base) if plain else None,
        settings=settings,
    )


def _opened(folder: Path | str, *, kinds: Set[str]) -> tuple[Path, dict[str, Any], TensorFile]:
    file = Path(folder) / CONFIG_FILE
    settings = read_json(file)
    kind = str(settings.get("peft_type") or "LORA").upper()
    if kind not in kinds:
        raise InputError(
            f"{file}: peft_type: expected {' or '.join(sorted(kinds))}, got {kind}; use the reader "
            "of its kind"
        )
    return file, settings, TensorFile(weights_file(Path(folder)))


def _parts(tensors: TensorFile, pattern: re.Pattern[str]) -> _Parts:
    found: _Parts = defaultdict(dict)
    for name in tensors:
        matched = pattern.fullmatch(name.removeprefix(PREFIX))
        if not matched:
            raise _unknown(tensors, name)
        if fault := tensors.fault(name):
            raise InputError(f"{tensors.file}: {name}: {fault}")
        found[matched.group(1)][matched.group(2)] = tensors[name].float()
    return found


def _unknown(tensors: TensorFile, name: str) -> InputError:
    return InputError(
        f"{tensors.file}: {name}: a tensor of shape {tensors.shape(name)} that such a mixture does "
        "not have"
    )


def _part(file: Path, layer: str, parts: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in parts:
        raise InputError(f"{file}: {layer}: expected a tensor {name}, found none")
    return parts[name]


def _check(file: Path, name: str, values: Tensor, expected: tuple[int | None, ...]) -> None:
    shape = tuple(values.shape)
    fits = len(shape) == len(expected) and all(
        want in {None, have} for want, have in zip(expected, shape, strict=True)
    )
    if not fits:
        said = ", ".join("any" if want is None else str(want) for want in expected)
        raise InputError(f"{file}: {name}: expected shape ({said}), found {shape}")


def _number(file: Path, settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{file}: {name}: expected a whole number above 0, got {value!r}")
    return value


def _bank(
    file: Path,
    kind: str,
    found: Mapping[str, Mapping[int, LoRA]],
    settings: Mapping[str, Any],
    *,
    heads: int = 1,
) -> AdapterBank:
    if not found:
        raise InputError(f"{file}: holds no experts")
    base = str(settings.get("base_model_name_or_path") or "")
    numbers = sorted({number for loras in found.values() for number in loras})
    return AdapterBank(
        [
            Expert(
                name=f"{kind}-{number}",
                modules={layer: loras[number] for layer, loras in found.items()},
                base_model=base,
            )
            for number in numbers
        ],
        heads=heads,
    )


def _check_experts(file: Path, found: Mapping[str, Mapping[int, LoRA]], num: int) -> None:
    for layer, loras in found.items():
        if sorted(loras) != list(range(num)):
            raise InputError(
                f"{file}: {layer}: expected experts 0 to {num - 1} (num_experts), found "
                f"{', '.join(map(str, sorted(loras)))}"
            )


def _gates_by_layer(
    file: Path, found: Mapping[str, Mapping[int, LoRA]], gates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Give every routed layer its gate, its own or its block's."""
    given = {}
    for layer in found:
        gate = gates.get(layer, gates.get(layer.rpartition(".")[0]))
        if gate is None:
            raise InputError(f"{file}: {layer}: expected a moe_gate of it or of its block")
        given[layer] = gate
    return given
