"""The CPU path of expert banks: sorted rows, one GEMM per expert and projection, one Function.

What makes it fast, each measured (docs/moe/speed.md): rows sorted and padded (see ``rows``), every
GEMM with ``out=`` into a workspace or straight into the expert's slice of the bank's gradient
(indexing w[e] under autograd writes a zero bank per expert), and gather, weight and sum of the
outputs in one ``embedding_bag``. Saved for backward: the input, one block of pre-activations per
expert and the sorted outputs; hidden rows and gathered inputs are made again.

Shapes: N tokens, K places, S sorted rows, R rows of one expert, E experts, D width, F hidden width,
G = 2F for swiglu, else F.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from crossroads.core.dispatch import team
from crossroads.core.dispatch.activations import Kind, activate_back, activate_into
from crossroads.core.dispatch.few import FEW_ROWS, few_rows
from crossroads.core.dispatch.native import Kernels, kernels_for
from crossroads.core.dispatch.once import first_order
from crossroads.core.dispatch.rows import (
    RowPlan,
    combine,
    pair_values,
    place_weights,
    row_weights,
)
from crossroads.core.dispatch.team import Block, Run, run_blocks
from crossroads.core.dispatch.weights import Bank

_ROWS, _MOST_ROWS = 1024, 1536  # of a span, and of the last one of an expert


def fused_bank(x_ND: Tensor, w_NK: Tensor, plan: RowPlan, bank: Bank) -> Tensor:
    """Return y_ND of the planned rows; differentiable in x, w and all weights of the bank."""
    kernels = kernels_for(x_ND)
    if bank.keeps_gradient(x_ND, w_NK):
        y_ND: Tensor = _FusedBank.apply(x_ND, w_NK, *bank.tensors, plan, bank.kind, kernels)
        return y_ND
    if plan.n_rows <= FEW_ROWS and _multiply_adds(plan, bank) < team.WORTH_SHARING:
        return few_rows(x_ND, w_NK, plan, bank, kernels)
    y_SD, _ = _forward(x_ND, plan, bank, kernels, keep=False)
    return combine(y_SD, plan.inverse_NK, place_weights(w_NK, plan, y_SD))


def _forward(
    x_ND: Tensor, plan: RowPlan, bank: Bank, kernels: Kernels | None, *, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return sorted outputs (a zero row last if a place is empty) and the pre-activations kept."""
    y_SD = x_ND.new_empty(plan.n_rows + bool(plan.n_empty), bank.second_EDF.shape[1])
    if plan.n_empty:
        y_SD[-1].zero_()
    kept: dict[int, Tensor] = {}

    def prepare() -> Run:
        work = _Workspace(bank, x_ND, min(plan.largest_block, _MOST_ROWS))
        x_RD, h_RF = work.x_RD(), work.h_RF()
        reused_RG = work.a_RG(0 if keep else None)

        def run(block: Block) -> None:
            expert, start, stop = block
            # One block per expert, not one of all rows: small enough for the allocator to reuse.
            a_RG = work.a_RG(stop - start) if keep else reused_RG
            for first, last in _cut(start, stop):
                rows = last - first
                x_r = torch.index_select(x_ND, 0, plan.rows_S[first:last], out=x_RD[:rows])
                offset = first - start if keep else 0
                a_r = a_RG[offset : offset + rows]
                _linear(x_r, bank.first_EGD, bank.first_bias_EG, expert, a_r)
                h_r = activate_into(bank.kind, a_r, h_RF[:rows], kernels)
                _linear(h_r, bank.second_EDF, bank.second_bias_ED, expert, y_SD[first:last])
            if keep:
                kept[expert] = a_RG

        return run

    run_blocks(plan.blocks, prepare, _multiply_adds(plan, bank))
    return y_SD, [kept[expert] for expert, _, _ in plan.blocks if keep]


def _cut(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a popular expert's rows into spans that stay in cache between the two products.

    The gradient of its weights is then rounded once per span.
    """
    while stop - start > _MOST_ROWS:
        yield start, start + _ROWS
        start += _ROWS
    yield start, stop


def _multiply_adds(plan: RowPlan, bank: Bank) -> int:
    """Return the work of a forward, 0 where it is not done by this process's threads."""
    if bank.first_EGD.device.type != "cpu":
        return 0
    return plan.n_rows * (bank.first_EGD.numel() + bank.second_EDF.numel()) // plan.n_experts


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None, expert: int, out: Tensor) -> None:
    """Write one expert's rows; indexing is cheap here, where nothing is recorded for backward."""
    if bias is None:
        torch.mm(rows, weight[expert].t(), out=out)
    else:
        torch.addmm(bias[expert], rows, weight[expert].t(), out=out)


class _FusedBank(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - what carries gradient is positional
        ctx: Any,
        x_ND: Tensor,
        w_NK: Tensor,
        first: Tensor,
        first_bias: Tensor | None,
        second: Tensor,
        second_bias: Tensor | None,
        plan: RowPlan,
        kind: Kind,
        kernels: Kernels | None,
    ) -> Tensor:
        bank = Bank(
            kind=kind,
            first_EGD=first,
            first_bias_EG=first_bias,
            second_EDF=second,
            second_bias_ED=second_bias,
        )
        needs_x, needs_w, *needs_bank = ctx.needs_input_grad[:6]
        y_SD, kept = _forward(x_ND, plan, bank, kernels, keep=needs_x or any(needs_bank[:3]))
        ctx.plan, ctx.kind, ctx.kernels = plan, kind, kernels
        kept_y = y_SD if needs_w else None
        ctx.save_for_backward(x_ND, w_NK, *bank.tensors, kept_y, *kept)
        return combine(y_SD, plan.inverse_NK, place_weights(w_NK, plan, y_SD))

    @staticmethod
    @first_order
    def backward(
        ctx: Any, tensors: tuple[Tensor, ...], grad_ND: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_ND, w_NK, first, first_bias, second, second_bias, y_SD, *kept = tensors
        bank = Bank(
            kind=ctx.kind,
            first_EGD=first,
            first_bias_EG=first_bias,
            second_EDF=second,
            second_bias_ED=second_bias,
        )
        saved = (x_ND, w_NK, y_SD, kept, ctx.plan, bank, ctx.kernels)
        grads = _backward(grad_ND.contiguous(), *saved, ctx.needs_input_grad)
        return (*grads, None, None, None)


def _backward(  # noqa: PLR0917 - what forward saved
    grad_ND: Tensor,
    x_ND: Tensor,
    w_NK: Tensor,
    y_SD: Tensor | None,
    kept: list[Tensor],
    plan: RowPlan,
    bank: Bank,
    kernels: Kernels | None,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """Return the gradients of x, w and the bank's tensors; None where not needed."""
    w_S = row_weights(w_NK, plan, x_ND.dtype if kernels is None else torch.float32)
    grads = [
        _bank_grad(t, plan) if n else None for t, n in zip(bank.tensors, needs[2:6], strict=True)
    ]
    d_first, d_first_bias, d_second, d_second_bias = grads
    dx_SD = x_ND.new_empty(plan.n_rows + bool(plan.n_empty), x_ND.shape[1]) if needs[0] else None
    dw_S = torch.empty_like(w_S, dtype=torch.promote_types(w_S.dtype, torch.float32))
    through = needs[0] or needs[2] or needs[3]
    hidden = {block[0]: a_e for block, a_e in zip(plan.blocks, kept, strict=False)}

    def prepare() -> Run:
        work = _Workspace(bank, x_ND, min(plan.largest_block, _MOST_ROWS))
        g_RD, x_RD, h_RF, dh_RF, da_RG = (
            work.g_RD(), work.x_RD(), work.h_RF(), work.h_RF(), work.a_RG()
        )  # fmt: skip

        def run(block: Block) -> None:
            expert, start, stop = block
            for first, last in _cut(start, stop):
                rows, span, more = last - first, slice(first, last), first > start
                g_r = _weigh_back(grad_ND, y_SD, span, plan, w_S, g_RD[:rows], dw_S, kernels)
                h_r, da_r = h_RF[:rows], da_RG[:rows]
                if hidden:
                    a_r = hidden[expert][first - start : last - start]
                if through:
                    dh_r = torch.mm(g_r, bank.second_EDF[expert], out=dh_RF[:rows])
                    activate_back(bank.kind, a_r, dh_r, h_r, da_r, kernels)
                elif d_second is not None:
                    activate_into(bank.kind, a_r, h_r, kernels)
                if d_second is not None:
                    _product(g_r, h_r, d_second[expert], more=more)
                if d_second_bias is not None:
                    _sum(g_r, d_second_bias[expert], more=more)
                if d_first is not None:
                    x_r = torch.index_select(x_ND, 0, plan.rows_S[span], out=x_RD[:rows])
                    _product(da_r, x_r, d_first[expert], more=more)
                if d_first_bias is not None:
                    _sum(da_r, d_first_bias[expert], more=more)
                if dx_SD is not None:
                    torch.mm(da_r, bank.first_EGD[expert], out=dx_SD[span])

        return run

    run_blocks(plan.blocks, prepare, 2 * _multiply_adds(plan, bank))
    dx_ND = None
    if dx_SD is not None:
        if plan.n_empty:
            dx_SD[-1].zero_()
        dx_ND = combine(dx_SD, plan.inverse_NK, None)
    dw_NK = pair_values(dw_S, plan).to(w_NK.dtype) if needs[1] else None
    return [dx_ND, dw_NK, *grads]


def _product(left: Tensor, right: Tensor, out: Tensor, *, more: bool) -> None:
    """Write left^T right, the gradient of a weight over one span; ``more`` adds it."""
    if more:
        out.addmm_(left.t(), right)
    else:
        torch.mm(left.t(), right, out=out)


def _sum(rows: Tensor, out: Tensor, *, more: bool) -> None:
    if more:
        out.add_(rows.sum(0))
    else:
        torch.sum(rows, 0, out=out)


def _weigh_back(  # noqa: PLR0917 - what is read, what is written, by what
    grad_ND: Tensor,
    y_SD: Tensor | None,
    span: slice,
    plan: RowPlan,
    w_S: Tensor,
    g_e: Tensor,
    dw_S: Tensor,
    kernels: Kernels | None,
) -> Tensor:
    """Return one expert's gradient of its outputs, in ``g_e``; if y is given, write that of w."""
    rows, weights = plan.rows_S[span], w_S[span]
    if kernels is not None and y_SD is not None:
        read = (grad_ND, y_SD[span], rows, weights)
        written = (g_e, dw_S[span])
        kernels.weigh_back(*(t.data_ptr() for t in (*read, *written)), *g_e.shape)
        return g_e
    torch.index_select(grad_ND, 0, rows, out=g_e)
    if y_SD is not None:
        torch.sum(g_e * y_SD[span], 1, dtype=dw_S.dtype, out=dw_S[span])
    return g_e.mul_(weights[:, None])  # 0 at pads, whose gradient ends here


class _Workspace:
    """Makes buffers of ``most`` rows, which one thread reuses for every expert it runs."""

    def __init__(self, bank: Bank, x_ND: Tensor, most: int) -> None:
        self._most, self._like = most, x_ND
        _, self._d_out, self._hidden = bank.second_EDF.shape
        _, self._width, self._d_in = bank.first_EGD.shape

    def x_RD(self) -> Tensor:
        return self._like.new_empty(self._most, self._d_in)

    def g_RD(self) -> Tensor:
        return self._like.new_empty(self._most, self._d_out)

    def h_RF(self) -> Tensor:
        return self._like.new_empty(self._most, self._hidden)

    def a_RG(self, rows: int | None = None) -> Tensor:
        return self._like.new_empty(self._most if rows is None else rows, self._width)


def _bank_grad(weights: Tensor | None, plan: RowPlan) -> Tensor | None:
    """Return an unwritten gradient, zero for experts without rows."""
    if weights is None:
        return None
    grad = torch.empty_like(weights, memory_format=torch.contiguous_format)
    for expert in set(range(plan.n_experts)) - {expert for expert, _, _ in plan.blocks}:
        grad[expert].zero_()
    return grad
