"""Forwards of few rows, as in decoding, without a gradient.

With a few rows an expert, cutting buffers and calling operations for each takes as long as
multiplying. A compiled kernel, where it is built, does the whole in one call and reads every weight
once. Without it rows are gathered and activated all at once, in buffers that a larger batch could
not afford, and only the products go expert by expert.

Shapes: N tokens, K places, E experts, S sorted rows, B blocks (experts with rows), I inputs and O
outputs of a product, D width, F hidden width, G = 2F for swiglu, else F.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from crossroads.core.dispatch.activations import activate_into
from crossroads.core.dispatch.native import Kernels, kernels_for
from crossroads.core.dispatch.rows import (
    RowPlan,
    check_range,
    combine,
    compiles_per_count,
    place_weights,
)
from crossroads.core.dispatch.weights import Bank

FEW_ROWS = 512  # buffers for all of them at once are still small beside the weights
_FEW_PAIRS = 1024  # tokens times places; above, a matrix library is as fast as the kernel
_SPAN, _LANES = 128, 16  # rows the kernel takes at a time, at most, and pads to
# Rows of an expert above which instructions for half precision are as fast as the kernel.
_MEAN_HALF, _MOST_HALF = 16, 32
_NOT_THERE = 2  # what the kernel answers for an expert that is not there


def compiled_rows(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank) -> Tensor | None:
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
    numbers = n_pairs * d_out + rows * (hidden + max(width + 2 * hidden, d_out))
    order = torch.empty(2 * n_pairs + n_experts, dtype=torch.int64, device=x_ND.device)
    work = torch.empty(numbers, dtype=torch.float32, device=x_ND.device)
    y_ND = x_ND.new_empty(n_tokens, d_out)
    # Copies, where there are any, live until the kernel is done.
    read = (x_ND.contiguous(), idx_NK.contiguous(), w_NK.to(x_ND.dtype).contiguous())
    used = (*read, bank.first_EGD, bank.second_EDF, order, work, y_ND)
    try:
        pointers = [tensor.data_ptr() for tensor in used]
    except RuntimeError:  # wrapped by torch.func
        return None
    most = _MOST_HALF if compiles_per_count(x_ND.dtype) else n_pairs
    fault = kernels.swiglu_few(*pointers, n_tokens, places, n_experts, width, hidden, d_out, most)
    if fault == _NOT_THERE:
        check_range(int(idx_NK.min()), int(idx_NK.max()), n_experts)
    return None if fault else y_ND


def _suits(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank) -> bool:
    """Return whether the kernel can read these tensors, and is the faster way."""
    if bank.kind != "swiglu" or bank.keeps_gradient(x_ND, w_NK):
        return False
    many = _FEW_PAIRS
    if compiles_per_count(x_ND.dtype):
        many = min(many, _MEAN_HALF * bank.first_EGD.shape[0])
    if idx_NK.dtype != torch.int64 or not 0 < idx_NK.numel() <= many:
        return False
    if not (bank.first_EGD.is_contiguous() and bank.second_EDF.is_contiguous()):
        return False  # copies would cost more than the kernel saves
    return all(map(_is_plain, (x_ND, idx_NK, w_NK, bank.first_EGD, bank.second_EDF)))


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is nothing but its numbers: no subclass, tangent or pending sign."""
    is_known = type(tensor) in (Tensor, nn.Parameter)
    return is_known and not tensor.is_neg() and forward_ad.unpack_dual(tensor).tangent is None


def few_rows(
    x_ND: Tensor, w_NK: Tensor, plan: RowPlan, bank: Bank, kernels: Kernels | None
) -> Tensor:
    """Return y_ND of the planned rows."""
    first_EGD, first_bias_EG, second_EDF, second_bias_ED = bank.tensors
    assert first_EGD is not None and second_EDF is not None
    x_SD = x_ND.index_select(0, plan.rows_S)
    a_SG = x_ND.new_empty(plan.n_rows, first_EGD.shape[1])
    _products(x_SD, plan, first_EGD, first_bias_EG, a_SG)
    h_SF = x_ND.new_empty(plan.n_rows, second_EDF.shape[2])
    activate_into(bank.kind, a_SG, h_SF, kernels)
    y_SD = x_ND.new_empty(plan.n_rows + bool(plan.n_empty), second_EDF.shape[1])
    _products(h_SF, plan, second_EDF, second_bias_ED, y_SD[: plan.n_rows])
    if plan.n_empty:
        y_SD[-1].zero_()
    return combine(y_SD, plan.inverse_NK, place_weights(w_NK, plan, y_SD))


def _products(
    rows_SI: Tensor, plan: RowPlan, weight_EOI: Tensor, bias_EO: Tensor | None, out_SO: Tensor
) -> None:
    """Write every block's rows times its expert's weight; cut up at once, not block by block."""
    rows_B = torch.split_with_sizes(rows_SI, plan.sizes)
    out_B = torch.split_with_sizes(out_SO, plan.sizes)
    weights = weight_EOI.transpose(1, 2)
    for (expert, _, _), rows, out in zip(plan.blocks, rows_B, out_B, strict=True):
        if bias_EO is None:
            torch.mm(rows, weights[expert], out=out)
        else:
            torch.addmm(bias_EO[expert], rows, weights[expert], out=out)
