"""Forwards of SwiGLU banks without a gradient, in one call of a compiled kernel.

It sorts the places, reads every weight once for 128 rows and holds buffers for so many: in
decoding it saves most of what is not a product, in large batches the memory. Where it is not built
or does not suit, None is the answer and torch does the same.

Shapes: N tokens, K places, E experts, D width, F hidden width, G = 2F.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from crossroads.core.dispatch import team
from crossroads.core.dispatch.native import kernels_for
from crossroads.core.dispatch.rows import check_range, compiles_per_count
from crossroads.core.dispatch.weights import Bank

_SPAN, _LANES = 128, 16  # rows of an expert that are taken at a time, and room for its pads
# Rows of an expert, on average and at most, above which instructions for half precision win.
_MEAN_HALF, _MOST_HALF = 16, 32
_NOT_THERE = 2  # what the kernel answers for an expert that is not there


def compiled_bank(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank) -> Tensor | None:
    """Return y_ND by the compiled kernel; None where it is not there, unfit or slower.

    Raises InputError for indices of experts that are not there.
    """
    kernels = kernels_for(x_ND)
    if kernels is None or not _suits(x_ND, idx_NK, w_NK, bank):
        return None
    n_experts, d_out, hidden = bank.second_EDF.shape
    (n_tokens, width), places = x_ND.shape, idx_NK.shape[1]
    n_pairs = n_tokens * places
    rows = min(_SPAN, -(-n_pairs // _LANES) * _LANES)
    numbers = rows * (hidden + max(width + 2 * hidden, d_out))
    if x_ND.dtype != torch.float32:
        numbers += n_tokens * d_out
    order = torch.empty(n_pairs + n_experts, dtype=torch.int64, device=x_ND.device)
    work = torch.empty(numbers, dtype=torch.float32, device=x_ND.device)
    y_ND = x_ND.new_empty(n_tokens, d_out)
    # Copies, where there are any, live until the kernel is done.
    read = (x_ND.contiguous(), idx_NK.contiguous(), w_NK.to(x_ND.dtype).contiguous())
    used = (*read, bank.first_EGD, bank.second_EDF, order, work, y_ND)
    try:
        pointers = [tensor.data_ptr() for tensor in used]
    except RuntimeError:  # wrapped by torch.func
        return None
    if not all(pointers):  # nothing there, or not really
        return None
    most = _MOST_HALF if compiles_per_count(x_ND.dtype) else n_pairs
    fault = kernels.swiglu_bank(
        *pointers, n_tokens, places, n_experts, width, hidden, d_out, most, rows
    )
    if fault == _NOT_THERE:
        check_range(int(idx_NK.min()), int(idx_NK.max()), n_experts)
    return None if fault else y_ND


def _suits(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank) -> bool:
    """Return whether the kernel can read these tensors, and is the faster way."""
    if bank.kind != "swiglu" or bank.keeps_gradient(x_ND, w_NK):
        return False
    if idx_NK.dtype != torch.int64 or not idx_NK.numel():
        return False
    if not (bank.first_EGD.is_contiguous() and bank.second_EDF.is_contiguous()):
        return False  # copies would cost more than the kernel saves
    tensors = (x_ND, idx_NK, w_NK, bank.first_EGD, bank.second_EDF)
    return _is_faster(idx_NK.numel(), bank) and all(map(_is_plain, tensors))


def _is_faster(n_pairs: int, bank: Bank) -> bool:
    dtype, n_experts = bank.first_EGD.dtype, bank.first_EGD.shape[0]
    if compiles_per_count(dtype):
        return n_pairs <= _MEAN_HALF * n_experts
    # Half precision without instructions takes torch seven times as long, whatever the threads.
    multiply_adds = n_pairs * (bank.first_EGD.numel() + bank.second_EDF.numel()) // n_experts
    return dtype != torch.float32 or not team.is_shared(multiply_adds)


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is nothing but its numbers: no subclass, tangent or pending sign."""
    if type(tensor) not in {Tensor, nn.Parameter} or tensor.is_neg():
        return False
    is_forward = forward_ad._current_level >= 0  # else there are no tangents
    return not is_forward or forward_ad.unpack_dual(tensor).tangent is None
