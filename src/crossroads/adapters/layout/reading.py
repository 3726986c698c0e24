"""A folder in PEFT's layout -> an expert.

Everything in the file is either loaded or named as left out. By default anything that cannot be
loaded is an error; ``partial=True`` loads the rest and says what was left. PEFT drops tensors for
layers that the model lacks without a word; here they are an error too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import Expert, LoRA
from crossroads.adapters.base_layers import layer_size
from crossroads.adapters.layout.configuration import Configuration, Left, read_configuration
from crossroads.adapters.layout.tensors import TensorFile, weights_file
from crossroads.core.errors import InputError

Dtype: TypeAlias = torch.dtype | Literal["auto"]
PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])(\.(?P<adapter>[^.]+))?\.weight")
# Other tensors PEFT writes: name of the layer, then what makes it no plain factor.
_OTHERS: Mapping[str, str] = {
    r"(?P<layer>.+)\.lora_embedding_[AB](\..+)?": "a factor of an embedding",
    r"(?P<layer>.+)\.lora_magnitude_vector(\..+)?": "a magnitude of DoRA",
    r"(?P<layer>.+)\.lora_B(\..+)?\.bias": "a bias of the factor B",
    r"(?P<layer>.+)\.lora_diag(\..+)?": "a diagonal of KaSA between the factors",
    r"(?P<layer>.+)\.lora_route(\..+)?": "a gate of HydraLoRA; use read_hydralora",
    r"(?P<layer>.+)\.lora_[AB]\d+\.weight": "a factor of HydraLoRA; use read_hydralora",
    r"(?P<layer>.+)\.poly_.+": "a part of Poly; use read_poly",
    r"()(.+\.)?token_adapter\..+": "trained embeddings of tokens",
    r"()(.+\.)?base_layer\..+": "a weight of the base model",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was loaded of an adapter, and what was not.

    Attributes
    ----------
    loaded : layers
    left : settings and tensors left out; empty unless loading was partial
    warnings : what is odd but changes nothing
    """

    expert: str
    folder: Path
    loaded: tuple[str, ...]
    left: tuple[Left, ...]
    warnings: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Layers of the adapter that the model lacks."""
        return tuple(left.what for left in self.left if left.kind == "missing")

    @property
    def mismatched(self) -> tuple[str, ...]:
        """Tensors of another shape than the model's layer or the settings ask for."""
        return tuple(left.what for left in self.left if left.kind in {"shape", "size"})


class LazyModules(Mapping[str, LoRA]):
    """Layer -> factors, read from the file each time they are asked for."""

    def __init__(self, tensors: TensorFile, plan: Mapping[str, _Planned], dtype: Dtype) -> None:
        self._tensors, self._plan, self._dtype = tensors, plan, dtype

    def __getitem__(self, layer: str) -> LoRA:
        planned = self._plan[layer]
        a_RI, b_OR = self._read(planned.a), self._read(planned.b)
        return LoRA(a_RI=a_RI, b_OR=b_OR, scale=planned.scale)

    def __iter__(self) -> Iterator[str]:
        return iter(self._plan)

    def __len__(self) -> int:
        return len(self._plan)

    def _read(self, name: str) -> Tensor:
        values = self._tensors[name]
        return values if self._dtype == "auto" else values.to(self._dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planned:
    a: str  # names in the file
    b: str
    scale: float


def read_adapter(
    folder: Path | str,
    *,
    name: str | None = None,
    model: nn.Module | None = None,
    dtype: Dtype = torch.float32,
    partial: bool = False,
) -> tuple[Expert, Report]:
    """Read a folder that PEFT's ``save_pretrained`` wrote.

    Raises InputError naming file, tensor, expected and found.

    Parameters
    ----------
    name : of the expert; the folder's by default
    model : the base model, to check the layers' names and sizes against; without one they are
        checked when the expert is put into a model
    dtype : of the factors; "auto" keeps the file's
    partial : load what can be loaded and report the rest
    """
    lazy, report = open_adapter(folder, name=name, model=model, dtype=dtype, partial=partial)
    modules = {layer: _owned(lora) for layer, lora in lazy.modules.items()}
    return Expert(
        name=lazy.name, modules=modules, base_model=lazy.base_model, info=lazy.info
    ), report


def open_adapter(
    folder: Path | str,
    *,
    name: str | None = None,
    model: nn.Module | None = None,
    dtype: Dtype = torch.float32,
    partial: bool = False,
) -> tuple[Expert, Report]:
    """Do as ``read_adapter``, but leave the factors in the file until they are asked for.

    A bank of many experts reads them straight into its stacks. The file must stay as it is.
    """
    folder = Path(folder)
    settings = read_configuration(folder)
    tensors = TensorFile(weights_file(folder))
    plan, left = _plan(settings, tensors, None if model is None else dict(model.named_modules()))
    left = [*settings.beside, *left]
    if left and not partial:
        raise InputError(_refusal(settings, tensors.file, left))
    if not plan:
        why = f" ({left[0].what}: {left[0].why})" if left else ""
        raise InputError(f"{tensors.file}: holds no LoRA factors that can be loaded{why}")
    expert = Expert(
        name=name or folder.resolve().name,
        modules=LazyModules(tensors, plan, dtype),
        base_model=settings.base_model,
        info={"source": str(folder), "configuration": dict(settings.written)},
    )
    report = Report(
        expert=expert.name,
        folder=folder,
        loaded=tuple(plan),
        left=tuple(left),
        warnings=_warnings(settings, plan, model),
    )
    return expert, report


def _owned(lora: LoRA) -> LoRA:
    """Return factors with memory of their own instead of the file's."""
    return LoRA(a_RI=lora.a_RI.clone(), b_OR=lora.b_OR.clone(), scale=lora.scale)


def _plan(
    settings: Configuration, tensors: TensorFile, modules: Mapping[str, nn.Module] | None
) -> tuple[dict[str, _Planned], list[Left]]:
    factors: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    spoiled: set[str] = set()  # layers whose factors alone are not what was trained
    left: list[Left] = []
    for key in tensors:
        found = _FACTOR.fullmatch(key.removeprefix(PREFIX))
        if found:
            factors[found["layer"]][found["factor"]].append(key)
            continue
        layer, why = _other(key.removeprefix(PREFIX))
        spoiled.add(layer)
        left.append(Left(kind="tensor", what=key, why=f"{why}, shape {tensors.shape(key)}"))
    plan: dict[str, _Planned] = {}
    for layer, both in factors.items():
        wrong = _fault(settings, tensors, layer, both, modules)
        if wrong:
            left.append(wrong)
        elif layer in spoiled:
            why = "its factors alone are another function than what was trained"
            left.append(Left(kind="tensor", what=layer, why=why))
        else:
            a, b = both["A"][0], both["B"][0]
            scale = settings.scale_of(layer, tensors.shape(a)[0])
            plan[layer] = _Planned(a=a, b=b, scale=scale)
    return plan, left


def _other(key: str) -> tuple[str, str]:
    """Return the layer that a tensor which is no factor spoils, and what the tensor is."""
    for pattern, what in _OTHERS.items():
        found = re.fullmatch(pattern, key)
        if found:
            return found.group(1), f"{what}, which is not supported"
    return "", "expected lora_A and lora_B alone, found a weight of its own"


def _fault(
    settings: Configuration,
    tensors: TensorFile,
    layer: str,
    both: Mapping[str, Sequence[str]],
    modules: Mapping[str, nn.Module] | None,
) -> Left | None:
    """Return why a layer's factors cannot be loaded."""
    for factor in "AB":
        names = both.get(factor, ())
        if len(names) != 1:
            found = f"found {len(names)}" + "".join(f" {name!r}" for name in names)
            why = f"expected one tensor lora_{factor}, {found}"
            return Left(kind="tensor", what=layer, why=why)
    a, b = both["A"][0], both["B"][0]
    if wrong := _wrong_rank(settings, tensors, layer, a, b):
        return wrong
    if not settings.covers(layer):
        why = f"{settings.file.name} does not target {layer}, so PEFT would drop it"
        return Left(kind="tensor", what=a, why=why)
    size = tensors.shape(a)[1], tensors.shape(b)[0]
    if modules is not None and (wrong := _against_model(layer, a, b, size, modules)):
        return wrong
    faults = ((name, tensors.fault(name)) for name in (a, b))
    return next((Left(kind="tensor", what=name, why=why) for name, why in faults if why), None)


def _wrong_rank(
    settings: Configuration, tensors: TensorFile, layer: str, a: str, b: str
) -> Left | None:
    shape_a, shape_b = tensors.shape(a), tensors.shape(b)
    for name, shape in ((a, shape_a), (b, shape_b)):
        if len(shape) != 2:
            return Left(kind="shape", what=name, why=f"expected two axes, found {shape}")
    rank, ranks = shape_a[0], settings.ranks_of(layer)
    if ranks and rank not in ranks:
        why = f"expected {(ranks[0], shape_a[1])}, found {shape_a}"
        if settings.names_rank(layer):
            why += f", by rank_pattern of {settings.file.name}"
        return Left(kind="shape", what=a, why=why)
    if rank != shape_b[1]:
        return Left(kind="shape", what=b, why=f"expected {(shape_b[0], rank)}, found {shape_b}")
    return None


def _against_model(
    layer: str, a: str, b: str, size: tuple[int, int], modules: Mapping[str, nn.Module]
) -> Left | None:
    if layer not in modules:
        return Left(kind="missing", what=layer, why="the model has no layer of this name")
    expected = layer_size(modules[layer])
    if expected is None:
        why = f"expected a linear layer, the model's is {type(modules[layer]).__name__}"
        return Left(kind="missing", what=layer, why=why)
    if expected == size:
        return None
    side = 0 if expected[0] != size[0] else 1
    what = f"{('inputs', 'outputs')[side]} of the model's layer"
    return Left(
        kind="size", what=(a, b)[side], why=f"expected {expected[side]} {what}, found {size[side]}"
    )


def _refusal(settings: Configuration, file: Path, left: Sequence[Left]) -> str:
    first = left[0]
    where = settings.file if first.kind == "setting" else file
    more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    hint = ";"
    if first.kind in {"missing", "size"}:
        named = f", {settings.base_model!r}" if settings.base_model else ""
        hint = f"; is it the base model that the adapter was trained on{named}?"
    return (
        f"{where}: {first.what}: {first.why}{more}{hint} crossroads adapters' --partial (in Python "
        "partial=True) leaves such things out and reports them"
    )


def _warnings(
    settings: Configuration, layers: Iterable[str], model: nn.Module | None
) -> tuple[str, ...]:
    found = []
    here = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    there = settings.base_model
    if here and there and Path(here).name.lower() != Path(there).name.lower():
        found.append(f"{settings.file}: trained on {there!r}, the model is {here!r}")
    unsure = [layer for layer in layers if settings.is_ambiguous(layer)]
    if unsure:
        found.append(
            f"{settings.file}: alpha_pattern: several keys match {unsure[0]}; the first counts, as "
            "in PEFT, which sorts them when it writes"
        )
    return tuple(found)
