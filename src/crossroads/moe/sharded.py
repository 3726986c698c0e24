"""Checkpoints of models whose experts are split over ranks: saved by any number, loaded by any.

Written through ``torch.distributed.checkpoint`` as safetensors, one file per rank, with the place
of every piece in its header; nothing is pickled. A single process without a process group saves and
loads the same files.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor, Shard

from crossroads.core.errors import InputError
from crossroads.moe.parallel import ExpertParallelBank


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
            state[key] = DTensor.from_local(
                parameter.detach(), module.mesh, [Shard(0)], run_check=False
            )
    return state


def save_sharded(model: nn.Module, folder: str | Path) -> None:
    """Write a checkpoint into a new folder; every rank calls it. It appears whole or not at all.

    Raises InputError when the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder}: exists already; remove it or choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    alone = not dist.is_initialized()
    if alone or dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    if not alone:
        dist.barrier()
    writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
    with _quiet():
        dcp.save(sharded_state(model), storage_writer=writer, no_dist=alone)
    if alone or dist.get_rank() == 0:
        partial.rename(folder)
    if not alone:
        dist.barrier()


def load_sharded(model: nn.Module, folder: str | Path) -> None:
    """Fill a model, split over any number of ranks or not at all, from ``save_sharded``'s folder.

    Raises InputError where the folder is missing or its tensors are not those of the model.
    """
    folder = Path(folder)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds no checkpoint; give a folder that save_sharded wrote")
    reader = HuggingFaceStorageReader(str(folder))
    state = sharded_state(model)
    found = reader.read_metadata().state_dict_metadata
    sizes = {name: tuple(getattr(meta, "size", ())) for name, meta in found.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [name for name in sorted({*sizes, *wanted}) if sizes.get(name) != wanted.get(name)]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{folder}: {name} has shape {sizes.get(name, 'none')} in the checkpoint and "
            f"{wanted.get(name, 'none')} in the model ({len(wrong)} such tensors); "
            "build the model with the settings it was saved with"
        )
    with _quiet():
        dcp.load(state, storage_reader=reader, no_dist=not dist.is_initialized())


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warning that one process alone is one process alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
