"""A forward of few rows, as in decoding: only the products go expert by expert.

With a few rows an expert, cutting buffers and calling operations for each takes as long as
multiplying. Here rows are gathered and activated all at once, in buffers that a larger batch could
not afford; for a handful of rows an expert a compiled kernel, where it is built, does the whole in
one call and reads every weight once.

Shapes: N tokens, S sorted rows, B blocks (experts with rows), I inputs and O outputs of a product,
D width, F hidden width, G = 2F for swiglu, else F.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from crossroads.core.dispatch.activations import activate_into
from crossroads.core.dispatch.native import Kernels
from crossroads.core.dispatch.rows import RowPlan, combine, place_weights
from crossroads.core.dispatch.weights import Bank

FEW_ROWS = 512
# Rows an expert up to which the compiled kernel is faster than a matrix library: on average, most.
HANDFUL, MOST_OF_ONE = 16, 32


def few_rows(
    x_ND: Tensor, w_NK: Tensor, plan: RowPlan, bank: Bank, kernels: Kernels | None
) -> Tensor:
    """Return y_ND of the planned rows, without a gradient."""
    first_EGD, first_bias_EG, second_EDF, second_bias_ED = bank.tensors
    assert first_EGD is not None and second_EDF is not None
    is_stored = first_EGD.is_contiguous() and second_EDF.is_contiguous()  # as the kernel reads it
    if kernels is not None and bank.kind == "swiglu" and is_stored and is_handful(plan):
        return _compiled(x_ND, w_NK, plan, first_EGD, second_EDF, kernels=kernels)
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


def is_handful(plan: RowPlan) -> bool:
    return plan.n_rows <= HANDFUL * len(plan.blocks) and 0 < plan.largest_block <= MOST_OF_ONE


def _compiled(
    x_ND: Tensor,
    w_NK: Tensor,
    plan: RowPlan,
    first_EGD: Tensor,
    second_EDF: Tensor,
    *,
    kernels: Kernels,
) -> Tensor:
    """Return y_ND; a swiglu bank has no biases."""
    _, d_out, hidden = second_EDF.shape
    n_tokens, width = x_ND.shape
    x_ND, w_NK = x_ND.contiguous(), w_NK.to(x_ND.dtype).contiguous()
    y_ND = x_ND.new_empty(n_tokens, d_out)
    blocks = torch.tensor(list(itertools.chain.from_iterable(plan.blocks)), dtype=torch.int64)
    buffers = plan.n_rows * d_out + plan.largest_block * (width + 3 * hidden) + d_out
    work = torch.empty(buffers, dtype=torch.float32)
    read = (x_ND, plan.rows_S, blocks, first_EGD, second_EDF, plan.inverse_NK, w_NK)
    sizes = (len(plan.blocks), plan.n_rows, n_tokens, w_NK.shape[1], width, hidden, d_out)
    kernels.swiglu_few(*(tensor.data_ptr() for tensor in (*read, work, y_ND)), *sizes)
    return y_ND


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
