"""A forward of few rows without a gradient, in torch: only the products go expert by expert.

With a few rows an expert, cutting buffers and calling operations for each takes as long as
multiplying. Here rows are gathered and activated all at once, in buffers that a larger batch could
not afford.

Shapes: N tokens, K places, E experts, S sorted rows, B blocks (experts with rows), I inputs and O
outputs of a product, D width, F hidden width, G = 2F for swiglu, else F.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.core.dispatch.activations import activate_into
from crossroads.core.dispatch.native import Kernels
from crossroads.core.dispatch.rows import RowPlan, combine, place_weights
from crossroads.core.dispatch.weights import Bank

FEW_ROWS = 512  # buffers for all of them at once are still small beside the weights


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
