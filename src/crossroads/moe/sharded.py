"""Checkpoints of models whose experts are split over ranks: saved by any number, loaded by any.

Written through ``torch.distributed.checkpoint`` as safetensors, one file per rank, with the place
of every piece in its header; nothing is pickled. A single process without a process group saves and
loads the same files. The optimiser's state lies beside the model's, in a folder of its own.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from crossroads.core.errors import InputError, UsageError
from crossroads.core.files import unwritable
from crossroads.moe.parallel import ExpertParallelBank

OPTIMISER, GROUPS = "optimiser", "groups.json"  # a folder of the checkpoint, and settings in it


def sharded_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with split experts as distributed tensors over the same memory.

    Names and global shapes are those of the model before ``shard_model``.
    """
    state = {name: t.detach() for name, t in model.state_dict().items()}
    for prefix, module in model.named_modules():
        if not isinstance(module, ExpertParallelBank):
            continue
        for name, parameter in module.sharded_parameters():
            key = f"{prefix}.{name}" if prefix else name
            state[key] = _whole(parameter.detach(), module.mesh)
    return state


def optimiser_state(model: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser keeps of each parameter, as ``kind.parameter``, split like those.

    Raises UsageError for parameters that are not the model's and for what cannot be split: all but
    single numbers and tensors of the parameter's shape.
    """
    meshes, state = _meshes(model), {}
    for parameter, name in _names(model, optimiser).items():
        for kind, value in optimiser.state.get(parameter, {}).items():
            if value is None:
                continue
            fits = isinstance(value, Tensor) and value.shape in (parameter.shape, torch.Size())
            if not fits:
                raise UsageError(
                    f"optimiser: {type(optimiser).__name__} keeps {kind!r} of {name}, which is "
                    "neither one number nor of the parameter's shape, and cannot be split over "
                    "ranks; use another optimiser, such as AdamW"
                )
            is_split = parameter in meshes and value.ndim
            state[f"{kind}.{name}"] = _whole(value, meshes[parameter]) if is_split else value
    return state


def save_sharded(
    model: nn.Module, folder: str | Path, *, optimiser: Optimizer | None = None
) -> None:
    """Write a checkpoint into a new folder; every rank calls it. It appears whole or not at all.

    Raises InputError when the folder exists or cannot be written, UsageError for an ``optimiser``
    whose state cannot be split (see ``optimiser_state``) or whose settings JSON does not know.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder}: exists already; remove it or choose another folder")
    kept = None if optimiser is None else optimiser_state(model, optimiser)
    # By every rank, and before anything is written: one that fails alone leaves others waiting.
    settings = None if optimiser is None else _settings(model, optimiser)
    partial = folder.with_name(f".{folder.name}.partial")
    alone = not dist.is_initialized()
    leads = alone or dist.get_rank() == 0
    if leads:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    if not alone:
        dist.barrier()
    _write(sharded_state(model), partial, folder)
    if kept:
        _write(kept, partial / OPTIMISER, folder)
    if leads and settings is not None:
        (partial / OPTIMISER).mkdir(exist_ok=True)
        (partial / OPTIMISER / GROUPS).write_text(settings, "utf-8")
    if leads:
        partial.rename(folder)
    if not alone:
        dist.barrier()


def load_sharded(
    model: nn.Module, folder: str | Path, *, optimiser: Optimizer | None = None
) -> None:
    """Fill a model, split over any number of ranks or not at all, from ``save_sharded``'s folder.

    ``optimiser``, made from the parameters of this model, gets its state and settings, too. Raises
    InputError where the folder is missing, its tensors are not those of the model or its optimiser
    is of another class or has other groups; the model is then as it was.
    """
    folder = Path(folder)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds no checkpoint; give a folder that save_sharded wrote")
    if optimiser is not None and not (folder / OPTIMISER / GROUPS).exists():
        raise InputError(
            f"{folder}: was saved without an optimiser; leave it out, or save it with "
            "save_sharded(model, folder, optimiser=optimiser)"
        )
    state = sharded_state(model)
    _check(state, {name: size for name, (size, _) in _contents(folder).items()}, folder)
    kept = None if optimiser is None else _matched(model, optimiser, folder / OPTIMISER)
    _read(state, folder)
    # By the modules' own way in, which also takes what is no tensor of theirs.
    model.load_state_dict({name: _local(value) for name, value in state.items()})
    if optimiser is not None and kept is not None:
        _load_optimiser(model, optimiser, kept, folder / OPTIMISER)


def _matched(model: nn.Module, optimiser: Optimizer, folder: Path) -> list[dict[str, Any]]:
    """Return the settings that were kept for each group of an optimiser, in its order.

    Raises InputError where another optimiser was saved, UsageError for parameters of another model.
    """
    groups = [frozenset(names) for names in _groups(model, optimiser)]
    kept = json.loads((folder / GROUPS).read_text("utf-8"))
    if kept["optimiser"] != type(optimiser).__name__:
        raise InputError(
            f"{folder}: was saved with {kept['optimiser']}, given {type(optimiser).__name__}; make "
            "the optimiser it was saved with, or leave it out and start anew"
        )
    saved = {frozenset(group.pop("parameters")): group for group in kept["groups"]}
    if saved.keys() != set(groups):
        raise InputError(
            f"{folder}: its groups of parameters are not those of the optimiser; make it with "
            "the groups it was saved with"
        )
    return [saved[group] for group in groups]


def _load_optimiser(
    model: nn.Module, optimiser: Optimizer, settings: list[dict[str, Any]], folder: Path
) -> None:
    meshes, names = _meshes(model), _names(model, optimiser)
    parameters = {name: parameter for parameter, name in names.items()}
    contents = _contents(folder)
    state: dict[str, Tensor] = {}
    for key, (size, dtype) in contents.items():
        parameter = parameters.get(key.partition(".")[2])
        if parameter is not None:
            shape = parameter.shape if size else ()
            value = torch.zeros(shape, dtype=dtype, device=parameter.device if size else None)
            is_split = parameter in meshes and size
            state[key] = _whole(value, meshes[parameter]) if is_split else value
    packed = optimiser.state_dict()
    for group, kept in zip(packed["param_groups"], settings, strict=True):
        group.update({name: _unlisted(value) for name, value in kept.items()})
    _check(state, {key: size for key, (size, _) in contents.items()}, folder)
    _read(state, folder)
    order = {name: index for index, name in enumerate(names.values())}
    packed["state"] = {}
    for key, value in state.items():
        kind, _, name = key.partition(".")
        packed["state"].setdefault(order[name], {})[kind] = _local(value)
    optimiser.load_state_dict(packed)


def _names(model: nn.Module, optimiser: Optimizer) -> dict[nn.Parameter, str]:
    """Return the names of an optimiser's parameters, in its order."""
    known = {parameter: name for name, parameter in model.named_parameters()}
    held = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    if any(parameter not in known for parameter in held):
        raise UsageError(
            "optimiser: some of its parameters are not the model's; make it after shard_model, "
            "from model.parameters()"
        )
    return {parameter: known[parameter] for parameter in held}


def _groups(model: nn.Module, optimiser: Optimizer) -> list[list[str]]:
    """Return the names of the parameters of each group."""
    names = _names(model, optimiser)
    return [[names[p] for p in group["params"]] for group in optimiser.param_groups]


def _settings(model: nn.Module, optimiser: Optimizer) -> str:
    """Return the optimiser's class, and settings and parameters of each group, as JSON.

    Raises UsageError for settings that are neither text nor numbers, nor made of such.
    """
    groups = []
    for group, names in zip(optimiser.param_groups, _groups(model, optimiser), strict=True):
        plain = {name: value for name, value in group.items() if name != "params"}
        for name, value in plain.items():
            try:
                plain[name] = json.loads(json.dumps(value, default=_number))
            except (TypeError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"optimiser: the setting {name!r} of a group, {value!r}, cannot be written as "
                    "JSON; give numbers or text"
                ) from error
        groups.append({"parameters": names, **plain})
    return json.dumps({"optimiser": type(optimiser).__name__, "groups": groups}, indent=1)


def _number(value: Any) -> Any:
    """Return the number in a tensor or array. Raises TypeError and what ``item`` raises."""
    if isinstance(value, Tensor | np.generic | np.ndarray):
        return value.item()
    raise TypeError


def _unlisted(value: Any) -> Any:
    """Return what JSON has made a list as the tuple it was."""
    return tuple(value) if isinstance(value, list) else value


def _meshes(model: nn.Module) -> dict[nn.Parameter, DeviceMesh]:
    """Return over which ranks each split parameter is split."""
    banks = [module for module in model.modules() if isinstance(module, ExpertParallelBank)]
    return {parameter: b.mesh for b in banks for _, parameter in b.sharded_parameters()}


def _whole(part: Tensor, mesh: DeviceMesh) -> Tensor:
    whole: Tensor = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
    return whole


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _contents(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return size and type of all tensors of a folder."""
    if not any(folder.glob("*.safetensors")):
        return {}
    found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (tuple(meta.size), meta.properties.dtype) for name, meta in found.items()}


def _write(state: dict[str, Tensor], folder: Path, place: Path) -> None:
    """Write into a folder that becomes ``place``. Raises InputError where it cannot be written."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _quiet():
            dcp.save(state, storage_writer=writer, no_dist=not dist.is_initialized())
    except dcp.CheckpointException as error:  # the ranks' failures, tracebacks and all
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise unwritable(place, failure) from failure
        raise


def _check(state: dict[str, Tensor], sizes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Raise InputError unless names and sizes of tensors are those that a folder holds."""
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [name for name in sorted({*sizes, *wanted}) if sizes.get(name) != wanted.get(name)]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{folder}: {name} has shape {sizes.get(name, 'none')} in the checkpoint and "
            f"{wanted.get(name, 'none')} in the model ({len(wrong)} such tensors); "
            "build the model with the settings it was saved with"
        )


def _read(state: dict[str, Tensor], folder: Path) -> None:
    """Fill tensors from a folder."""
    if state:
        reader = HuggingFaceStorageReader(str(folder))
        with _quiet():
            dcp.load(state, storage_reader=reader, no_dist=not dist.is_initialized())


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warning that one process alone is one process alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
