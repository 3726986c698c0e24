"""One linear map per expert over sorted rows: the piece that banks of adapters are built from.

A bank of LoRA adapters over a plan is ``combine_rows(grouped_linear(grouped_linear(gather_rows(x,
plan), plan, A), plan, B), scale * w, plan)``: gradients for x, w, A and B, nothing of size
[tokens, experts, width].

Shapes: S sorted rows, E experts, B blocks (experts with rows), I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossroads.core.dispatch.once import first_order
from crossroads.core.dispatch.rows import RowPlan
from crossroads.core.errors import InputError


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_SI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, plan: RowPlan
    ) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(x_SI, weight_EOI, bias_EO)
        y_SO = x_SI.new_empty(len(x_SI), weight_EOI.shape[1])
        # Cut up at once: with few rows an expert, slicing took as long as multiplying.
        x_B, y_B, weight_B = x_SI.split(plan.sizes), y_SO.split(plan.sizes), _each(weight_EOI, plan)
        if bias_EO is None:
            for x, weight, y in zip(x_B, weight_B, y_B, strict=True):
                torch.mm(x, weight.t(), out=y)
        else:
            for x, weight, bias, y in zip(x_B, weight_B, _each(bias_EO, plan), y_B, strict=True):
                torch.addmm(bias, x, weight.t(), out=y)
        return y_SO

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad_SO: Tensor) -> tuple[Tensor | None, ...]:
        x_SI, weight_EOI, bias_EO = saved
        plan: RowPlan = ctx.plan
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx_SI = torch.empty_like(x_SI) if needs_x else None
        d_weight = torch.zeros_like(weight_EOI) if needs_weight else None
        d_bias = torch.zeros_like(bias_EO) if needs_bias else None
        grad_B = grad_SO.split(plan.sizes)
        if dx_SI is not None:
            pairs = zip(grad_B, _each(weight_EOI, plan), dx_SI.split(plan.sizes), strict=True)
            for grad, weight, dx in pairs:
                torch.mm(grad, weight, out=dx)
        if d_weight is not None:
            pairs = zip(grad_B, x_SI.split(plan.sizes), _each(d_weight, plan), strict=True)
            for grad, x, dw in pairs:
                torch.mm(grad.t(), x, out=dw)
        if d_bias is not None:
            for grad, db in zip(grad_B, _each(d_bias, plan), strict=True):
                torch.sum(grad, 0, out=db)
        return dx_SI, d_weight, d_bias, None


def _each(per_expert: Tensor, plan: RowPlan) -> list[Tensor]:
    """Return the part of every block's expert."""
    if 2 * len(plan.blocks) < plan.n_experts:
        return [per_expert[expert] for expert, _, _ in plan.blocks]
    parts = per_expert.unbind()
    return [parts[expert] for expert, _, _ in plan.blocks]


def grouped_linear(
    x_SI: Tensor, plan: RowPlan, weight_EOI: Tensor, bias_EO: Tensor | None = None
) -> Tensor:
    """Return y_SO: each sorted row times its own expert's weight, plus that expert's bias.

    Differentiable in x, weight and bias. Rows that pad a block are computed like the others.

    Raises InputError where the rows or experts are not the plan's.
    """
    if len(x_SI) != plan.n_rows or len(weight_EOI) != plan.n_experts:
        raise InputError(
            f"x and weight must have the plan's {plan.n_rows} rows and {plan.n_experts} experts, "
            f"got {len(x_SI)} and {len(weight_EOI)}; gather_rows(x, plan) makes the rows"
        )
    y_SO: Tensor = _GroupedLinear.apply(x_SI, weight_EOI, bias_EO, plan)
    return y_SO
