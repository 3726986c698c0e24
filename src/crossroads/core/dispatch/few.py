"""A forward of few rows, as in decoding: only the products go expert by expert.

With a few rows an expert, cutting buffers and calling operations for each takes as long as
multiplying. A compiled kernel, where it is built, does the whole in one call and reads every weight
once. Without it, rows are gathered and activated all at once, in buffers that a larger batch could
not afford.

Shapes: N tokens, K places, E experts, S sorted rows, B blocks (experts with rows), I inputs and O
outputs of a product, D width, F hidden width, G = 2F for swiglu, else F.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from crossroads.core.dispatch.activations import activate_into
from crossroads.core.dispatch.native import Kernels
from crossroads.core.dispatch.rows import RowPlan, combine, compiles_per_count, place_weights
from crossroads.core.dispatch.weights import Bank

FEW_ROWS = 512  # buffers for all of them at once are still small beside the weights
_LANES = 16  # the kernel pads a block's rows to a multiple of them at most
# Rows of an expert above which instructions for half precision are as fast as the kernel.
_MEAN_HALF, _MOST_HALF = 16, 32


def few_rows(
    x_ND: Tensor, w_NK: Tensor, plan: RowPlan, bank: Bank, kernels: Kernels | None
) -> Tensor:
    """Return y_ND of the planned rows, without a gradient."""
    first_EGD, first_bias_EG, second_EDF, second_bias_ED = bank.tensors
    assert first_EGD is not None and second_EDF is not None
    if kernels is not None and bank.kind == "swiglu" and _suits(plan, x_ND.dtype):
        y_ND = _compiled(x_ND, w_NK, plan, first_EGD, second_EDF, kernels=kernels)
        if y_ND is not None:
            return y_ND
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


def _suits(plan: RowPlan, dtype: torch.dtype) -> bool:
    """Return whether the kernel is the faster way for these rows."""
    n_rows = sum(plan.counts)
    if not n_rows or not compiles_per_count(dtype):
        return n_rows > 0
    return n_rows <= _MEAN_HALF * len(plan.blocks) and max(plan.counts) <= _MOST_HALF


def _compiled(
    x_ND: Tensor,
    w_NK: Tensor,
    plan: RowPlan,
    first_EGD: Tensor,
    second_EDF: Tensor,
    *,
    kernels: Kernels,
) -> Tensor | None:
    """Return y_ND, None where a tensor's numbers do not simply lie in memory. No biases."""
    if not all(map(_is_plain, (x_ND, w_NK, first_EGD, second_EDF))):
        return None
    if not (first_EGD.is_contiguous() and second_EDF.is_contiguous()):
        return None  # copies would cost more than the kernel saves
    _, d_out, hidden = second_EDF.shape
    n_tokens, width = x_ND.shape
    x_ND, w_NK = x_ND.contiguous(), w_NK.to(x_ND.dtype).contiguous()
    y_ND = x_ND.new_empty(n_tokens, d_out)
    # Pads have rows of their own, which are left out: the kernel is made for any count.
    real = [(expert, first, first + plan.counts[expert]) for expert, first, _ in plan.blocks]
    blocks = torch.tensor(real, dtype=torch.int64, device=x_ND.device)
    most = -(-max(plan.counts) // _LANES) * _LANES
    buffers = plan.n_rows * d_out + most * (hidden + max(width + 2 * hidden, d_out))
    work = torch.empty(buffers, dtype=torch.float32, device=x_ND.device)
    read = (x_ND, plan.rows_S, blocks, first_EGD, second_EDF, plan.inverse_NK, w_NK)
    sizes = (len(real), plan.n_rows, n_tokens, w_NK.shape[1], width, hidden, d_out)
    try:
        pointers = [tensor.data_ptr() for tensor in (*read, work, y_ND)]
    except RuntimeError:  # wrapped by torch.func
        return None
    kernels.swiglu_few(*pointers, *sizes)
    return y_ND


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is nothing but its numbers: no subclass, tangent or pending sign."""
    is_known = type(tensor) in (Tensor, nn.Parameter)
    return is_known and not tensor.is_neg() and forward_ad.unpack_dual(tensor).tangent is None


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
