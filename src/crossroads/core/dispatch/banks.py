"""Banks of expert FFNs: y[n] = sum over places k of w[n, k] * expert_{idx[n, k]}(x[n]).

An empty place (-1) costs nothing and adds nothing. ``w`` multiplies the expert's output, need not
sum to 1 and carries gradient, as do x and all weights. Second derivatives: ``loop`` has them,
``fused`` refuses them.

Paths, all equal up to rounding: ``fused`` (the CPU's), ``grouped_mm`` (the GPU's, also in bfloat16
without a copy per expert), ``loop`` (the reference), ``auto`` (by device).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from crossroads.core.dispatch.activations import ACTIVATIONS, Activation
from crossroads.core.dispatch.compiled import compiled_bank
from crossroads.core.dispatch.fused import fused_bank
from crossroads.core.dispatch.plain import grouped_bank, is_grouped_size, loop_bank
from crossroads.core.dispatch.rows import check_range, compiles_per_count, plan_rows
from crossroads.core.dispatch.weights import Bank
from crossroads.core.errors import InputError, unknown_name

Path = Literal["auto", "fused", "grouped_mm", "loop"]
PATHS: tuple[Path, ...] = get_args(Path)


def swiglu_bank(
    x_ND: Tensor,
    idx_NK: Tensor,
    w_NK: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    *,
    path: Path = "auto",
) -> Tensor:
    """Return y_ND with experts down[e] (silu(gate[e] x) * up[e] x), gate before up in ``gate_up``.

    Raises InputError for shapes, types or indices that do not fit, UsageError for an unknown path.
    """
    bank = Bank(
        kind="swiglu",
        first_EGD=gate_up_E2FD,
        first_bias_EG=None,
        second_EDF=down_EDF,
        second_bias_ED=None,
    )
    return _bank(x_ND, idx_NK, w_NK, bank, path)


def mlp_bank(  # noqa: PLR0917 - one bank, weights and biases in the order they are applied
    x_ND: Tensor,
    idx_NK: Tensor,
    w_NK: Tensor,
    up_EFD: Tensor,
    up_bias_EF: Tensor | None,
    down_EDF: Tensor,
    down_bias_ED: Tensor | None,
    *,
    activation: Activation = "gelu",
    path: Path = "auto",
) -> Tensor:
    """Return y_ND with experts down[e] act(up[e] x + up_bias[e]) + down_bias[e].

    Raises InputError for shapes, types or indices that do not fit, UsageError for an unknown path
    or activation.
    """
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    bank = Bank(
        kind=activation,
        first_EGD=up_EFD,
        first_bias_EG=up_bias_EF,
        second_EDF=down_EDF,
        second_bias_ED=down_bias_ED,
    )
    return _bank(x_ND, idx_NK, w_NK, bank, path)


def _bank(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank, path: Path) -> Tensor:
    if torch.compiler.is_compiling():
        return _uncompiled(x_ND, idx_NK, w_NK, bank, path)
    return _checked(x_ND, idx_NK, w_NK, bank, path)


@torch.compiler.disable
def _uncompiled(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank, path: Path) -> Tensor:
    """Run as it stands inside compiled code; the mark costs more than a small batch."""
    return _checked(x_ND, idx_NK, w_NK, bank, path)


def _checked(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank, path: Path) -> Tensor:
    """Check, cast under autocast, and run."""
    if path not in PATHS:
        raise unknown_name("path", path, PATHS)
    if not isinstance(x_ND, Tensor):
        raise InputError(f"x must be a tensor of torch, as all the others, got {type(x_ND)}")
    device = x_ND.device.type
    if not torch.is_autocast_enabled(device):
        _check(x_ND, idx_NK, w_NK, bank)
        return _run(x_ND, idx_NK, w_NK, bank, path)
    dtype = torch.get_autocast_dtype(device)
    x_ND, bank = x_ND.to(dtype), _cast(bank, dtype)
    _check(x_ND, idx_NK, w_NK, bank)
    with torch.autocast(device, enabled=False):
        return _run(x_ND, idx_NK, w_NK, bank, path)


def _run(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank, path: Path) -> Tensor:
    if path == "auto":
        path = _best_path(x_ND, bank)
    if path != "fused" and idx_NK.numel() and not idx_NK.is_cuda:  # there it would wait for them
        check_range(int(idx_NK.min()), int(idx_NK.max()), bank.first_EGD.shape[0])
    if path == "loop":
        return loop_bank(x_ND, idx_NK, w_NK, bank)
    if path == "grouped_mm":
        return grouped_bank(x_ND, idx_NK, w_NK, bank)
    y_ND = compiled_bank(x_ND, idx_NK, w_NK, bank)
    if y_ND is not None:
        return y_ND
    n_experts = bank.first_EGD.shape[0]
    plan = plan_rows(idx_NK, n_experts, multiple=_row_multiple(x_ND, idx_NK.numel() / n_experts))
    return fused_bank(x_ND, w_NK, plan, bank)


def _best_path(x_ND: Tensor, bank: Bank) -> Path:
    """Return the path of a device: fused wins at every size on a CPU (docs/moe/speed.md)."""
    sizes = (x_ND.shape[1], bank.second_EDF.shape[2])
    if x_ND.device.type == "cpu" or not all(is_grouped_size(size, x_ND) for size in sizes):
        return "fused"
    return "grouped_mm"


def _row_multiple(x_ND: Tensor, rows_each: float) -> int:
    """Return to how many rows a block is padded: oneDNN compiles half precision per row count."""
    if x_ND.dtype not in (torch.bfloat16, torch.float16):
        return 1
    if x_ND.device.type == "cpu" and not compiles_per_count(x_ND.dtype):
        return 1
    # Few rows an expert: pads cost more than the few compilations.
    return 64 if rows_each >= 512 else 32 if rows_each >= 64 else 16


def _cast(bank: Bank, dtype: torch.dtype) -> Bank:
    first, first_bias, second, second_bias = (
        None if tensor is None else tensor.to(dtype) for tensor in bank.tensors
    )
    assert first is not None and second is not None
    return Bank(
        kind=bank.kind,
        first_EGD=first,
        first_bias_EG=first_bias,
        second_EDF=second,
        second_bias_ED=second_bias,
    )


def _named(bank: Bank) -> list[tuple[str, Tensor]]:
    named = [("first projection", bank.first_EGD), ("second projection", bank.second_EDF)]
    for name, bias in (("first bias", bank.first_bias_EG), ("second bias", bank.second_bias_ED)):
        if bias is not None:
            named.append((name, bias))
    return named


def _check(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank) -> None:
    first, second = bank.first_EGD, bank.second_EDF
    if x_ND.ndim != 2 or first.ndim != 3 or second.ndim != 3:
        raise InputError(
            f"x must be [tokens, width] and weights [experts, out, in], got {list(x_ND.shape)}, "
            f"{list(first.shape)} and {list(second.shape)}"
        )
    for name, tensor in (("idx", idx_NK), ("w", w_NK), *_named(bank)):
        if tensor.device != x_ND.device:
            raise InputError(
                f"{name} is on {tensor.device} and x on {x_ND.device}; move one of them"
            )
    experts, rows, _ = first.shape
    if bank.kind == "swiglu" and rows % 2:
        raise InputError(
            f"first projection holds gate and up of equal size, got an odd number of rows, {rows}"
        )
    width, hidden = x_ND.shape[1], rows // 2 if bank.kind == "swiglu" else rows
    shapes = {
        "first projection": (experts, rows, width),
        "second projection": (experts, second.shape[1], hidden),
        "first bias": (experts, rows),
        "second bias": (experts, second.shape[1]),
    }
    for name, tensor in _named(bank):
        shape = shapes[name]
        if tensor.shape != shape:
            raise InputError(
                f"{name} must be {list(shape)} for x {list(x_ND.shape)}, got {list(tensor.shape)}"
            )
        if tensor.dtype != x_ND.dtype:
            raise InputError(
                f"{name} is {tensor.dtype} and x is {x_ND.dtype}; cast one of them, or use autocast"
            )
    if idx_NK.shape != w_NK.shape or idx_NK.ndim != 2 or len(idx_NK) != len(x_ND):
        raise InputError(
            f"idx and w must both be [{len(x_ND)}, places], got {list(idx_NK.shape)} and "
            f"{list(w_NK.shape)}"
        )
