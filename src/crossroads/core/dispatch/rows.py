"""Which token rows each expert computes: sort, pad, gather and combine.

A plan orders the (token, place) pairs by expert, so that every expert finds its rows side by side.
Blocks may be padded to a multiple of rows. In bfloat16 on a CPU that is what makes fresh routing
fast: oneDNN compiles one kernel per exact row count (about 2.7 ms each), and a dropless layer meets
a new count per expert in every batch. A pad row repeats a token of its own block, so that what is
not finite stays with the expert that met it; it has weight 0 and is never read back.

Shapes: N tokens, K places a token, E experts, S sorted rows with pads, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from crossroads.core.errors import InputError

_SUM = 0  # the mode of embedding_bag
_FEW = 64  # pairs that are sorted without tensors


@dataclass(frozen=True, kw_only=True, eq=False)
class RowPlan:
    """Rows sorted by expert.

    ``rows_S`` is the token of each sorted row and ``inverse_NK`` the sorted row of each pair, S for
    an empty place. ``counts`` (``counts_E`` as a
    tensor) are the real rows of each expert; its block of rows, pads and
    all, is ``offsets[e]`` to ``offsets[e + 1]``.
    """

    n_tokens: int
    counts: tuple[int, ...]
    offsets: tuple[int, ...]
    rows_S: Tensor
    inverse_NK: Tensor
    n_empty: int

    @cached_property
    def counts_E(self) -> Tensor:
        return torch.tensor(self.counts, device=self.rows_S.device)

    @property
    def n_experts(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_rows(self) -> int:
        """S: the sorted rows, pads among them."""
        return self.offsets[-1]

    @cached_property
    def blocks(self) -> tuple[tuple[int, int, int], ...]:
        """(expert, first row, row past the last) of every expert that has rows."""
        spans = enumerate(pairwise(self.offsets))
        return tuple((expert, first, last) for expert, (first, last) in spans if last > first)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Rows of every block, pads among them."""
        return tuple(last - first for _, first, last in self.blocks)

    @property
    def largest_block(self) -> int:
        return max((last - first for _, first, last in self.blocks), default=0)


@cache
def compiles_per_count(dtype: torch.dtype) -> bool:
    """Return whether this CPU runs products of a type by oneDNN, which compiles for every count.

    A CPU without the instructions computes them by torch's own kernels: a pad only costs there.
    """
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in name or not torch.backends.mkldnn.is_available():
        return False
    return bool(getattr(torch.ops.mkldnn, name[dtype])())


def plan_rows(idx_NK: Tensor, n_experts: int, *, multiple: int = 1) -> RowPlan:
    """Return the rows of ``idx_NK`` (int64, -1 = empty place) sorted by expert.

    The sort is stable: within an expert, rows keep the order of tokens and places. Blocks of
    experts that have rows are padded to ``multiple`` rows; an expert without rows has none.

    Raises InputError for a wrong shape or type, or an index outside [-1, n_experts).
    """
    _check_indices(idx_NK, n_experts, multiple)
    if idx_NK.numel() <= _FEW and idx_NK.device.type == "cpu":
        return _plan_few(idx_NK, n_experts, multiple)
    pair_P = idx_NK.reshape(-1)
    expert_P, order_P = torch.sort(pair_P, stable=True)
    marks = torch.arange(n_experts + 1, device=idx_NK.device)
    starts: list[int] = torch.searchsorted(expert_P, marks).tolist()  # before them: empty places
    if len(expert_P):
        check_range(int(expert_P[0]), int(expert_P[-1]), n_experts)
    counts = [last - first for first, last in pairwise(starts)]
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + -(-count // multiple) * multiple)
    n_empty, n_rows = starts[0], offsets[-1]
    order_P, expert_P = order_P[n_empty:], expert_P[n_empty:]
    token_P = order_P.div(idx_NK.shape[1], rounding_mode="floor") if n_rows else order_P
    inverse_P = torch.full_like(pair_P, n_rows)
    if n_rows == token_P.shape[0]:
        rows_S = token_P
        position_P = torch.arange(n_rows, device=idx_NK.device)
    else:
        shift_E = torch.tensor(
            [offset + n_empty - start for offset, start in zip(offsets, starts, strict=True)],
            device=idx_NK.device,
        )
        position_P = torch.arange(len(token_P), device=idx_NK.device) + shift_E[expert_P]
        rows_S = _padded(token_P, position_P, counts, offsets)
    inverse_P[order_P] = position_P
    return RowPlan(
        n_tokens=idx_NK.shape[0],
        counts=tuple(counts),
        offsets=tuple(offsets),
        rows_S=rows_S,
        inverse_NK=inverse_P.view(idx_NK.shape),
        n_empty=n_empty,
    )


def _plan_few(idx_NK: Tensor, n_experts: int, multiple: int) -> RowPlan:
    """As ``plan_rows``, in plain Python: ten tensor operations cost more than a few pairs."""
    pairs: list[int] = idx_NK.reshape(-1).tolist()
    if pairs:
        check_range(min(pairs), max(pairs), n_experts)
    places = idx_NK.shape[1]
    counts = [0] * n_experts
    for expert in pairs:
        if expert >= 0:
            counts[expert] += 1
    offsets = [0, *accumulate(-(-count // multiple) * multiple for count in counts)]
    rows, inverse = [0] * offsets[-1], [offsets[-1]] * len(pairs)
    free = offsets.copy()  # the next row of each expert
    for pair, expert in enumerate(pairs):
        if expert >= 0:
            inverse[pair] = free[expert]
            rows[free[expert]] = pair // places
            free[expert] += 1
    if multiple > 1:
        for begun, past, end in zip(offsets, free, offsets[1:], strict=False):
            rows[past:end] = rows[begun : begun + 1] * (end - past)
    return RowPlan(
        n_tokens=idx_NK.shape[0],
        counts=tuple(counts),
        offsets=tuple(offsets),
        rows_S=torch.tensor(rows, dtype=torch.int64, device="cpu"),
        inverse_NK=torch.tensor(inverse, dtype=torch.int64, device="cpu").view(idx_NK.shape),
        n_empty=len(pairs) - sum(counts),
    )


def _padded(token_P: Tensor, position_P: Tensor, counts: list[int], offsets: list[int]) -> Tensor:
    """Return the tokens at their padded positions; pads repeat the first token of their block."""
    rows_S = token_P.new_empty(offsets[-1])
    done = 0
    for count, (first, last) in zip(counts, pairwise(offsets), strict=True):
        if last > first + count:
            rows_S[first + count : last] = token_P[done]
        done += count
    return rows_S.index_copy_(0, position_P, token_P)


def _check_indices(idx_NK: Tensor, n_experts: int, multiple: int) -> None:
    if idx_NK.ndim != 2 or idx_NK.dtype != torch.int64:
        raise InputError(
            f"idx must be int64 of shape [tokens, places], got {idx_NK.dtype} "
            f"{list(idx_NK.shape)}; reshape it, or call .long()"
        )
    if n_experts < 1 or multiple < 1:
        raise InputError(
            f"n_experts and multiple must be at least 1, got {n_experts!r} and {multiple!r}"
        )


def check_range(least: int, most: int, n_experts: int) -> None:
    """Raise InputError for indices of experts that are not there."""
    if least < -1 or most >= n_experts:
        raise InputError(
            f"idx must lie in [-1, {n_experts}) (-1 = empty place), got {least} to {most}; "
            "does the router know as many experts as the layer has?"
        )


def combine(y_SD: Tensor, inverse_NK: Tensor, w_NK: Tensor | None) -> Tensor:
    """Return y_ND = sum_k w[n, k] * y[inverse[n, k]]; an inverse of S reads nothing.

    ``y_SD`` must have a zero row at S where ``inverse_NK`` points there. ``w_NK`` None adds the
    rows up as they are. No gradient: the differentiable form is ``combine_rows``.
    """
    if not inverse_NK.shape[1]:
        return y_SD.new_zeros(len(inverse_NK), y_SD.shape[1])  # bags of no places are refused
    # One call for gather, weight and sum: 3 to 6 times faster than the three.
    n_tokens, places = inverse_NK.shape
    starts_N = torch.arange(0, n_tokens * places, places, device=inverse_NK.device)
    if w_NK is not None:
        w_NK = w_NK.reshape(-1)
    sums, *_ = torch.embedding_bag(
        y_SD, inverse_NK.reshape(-1), starts_N, per_sample_weights=w_NK, mode=_SUM
    )
    return sums


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, plan: RowPlan) -> Tensor:
        ctx.plan = plan
        return x_ND.index_select(0, plan.rows_S)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None]:
        plan: RowPlan = ctx.plan
        return combine(with_zero_row(grad_SD, plan), plan.inverse_NK, None), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, w_NK: Tensor, plan: RowPlan) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(y_SD, w_NK)
        return combine(with_zero_row(y_SD, plan), plan.inverse_NK, place_weights(w_NK, plan, y_SD))

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        plan: RowPlan = ctx.plan
        y_SD, w_NK = ctx.saved_tensors
        grad_SD = grad_ND.index_select(0, plan.rows_S)
        dw_NK = None
        if ctx.needs_input_grad[1]:
            dw_NK = pair_values((grad_SD * y_SD).sum(1, dtype=w_NK.dtype), plan)
        return grad_SD * row_weights(w_NK, plan, y_SD.dtype)[:, None], dw_NK, None


def gather_rows(x_ND: Tensor, plan: RowPlan) -> Tensor:
    """Return x_SD, the token of every sorted row; differentiable in x."""
    if not plan.n_rows:
        return x_ND[:0]
    gathered: Tensor = _Gather.apply(x_ND, plan)
    return gathered


def combine_rows(y_SD: Tensor, w_NK: Tensor, plan: RowPlan) -> Tensor:
    """Return y_ND, each token's weighted sum over its places; differentiable in y and w."""
    if not plan.n_rows:
        return y_SD.new_zeros(plan.n_tokens, y_SD.shape[1])
    combined: Tensor = _Combine.apply(y_SD, w_NK, plan)
    return combined


def with_zero_row(y_SD: Tensor, plan: RowPlan) -> Tensor:
    """Return y with the zero row that empty places read, if there are any."""
    return torch.cat([y_SD, y_SD.new_zeros(1, y_SD.shape[1])]) if plan.n_empty else y_SD


def place_weights(w_NK: Tensor, plan: RowPlan, like: Tensor) -> Tensor:
    """Return the weights in the type of ``like``, 0 at empty places whatever stood there."""
    w_NK = w_NK.to(like.dtype)
    return (
        w_NK.masked_fill(plan.inverse_NK == plan.n_rows, 0) if plan.n_empty else w_NK.contiguous()
    )


def row_weights(w_NK: Tensor, plan: RowPlan, dtype: torch.dtype) -> Tensor:
    """Return the weight of every sorted row, 0 at pads."""
    w_S = w_NK.new_zeros(plan.n_rows + 1, dtype=dtype)  # the last: what empty places carry
    w_S.index_copy_(0, plan.inverse_NK.reshape(-1), w_NK.reshape(-1).to(dtype))
    return w_S[:-1]


def pair_values(value_S: Tensor, plan: RowPlan) -> Tensor:
    """Return the value of each pair's row, [N, K]; 0 at empty places."""
    if plan.n_empty:
        value_S = torch.cat([value_S, value_S.new_zeros(1)])
    return value_S.index_select(0, plan.inverse_NK.reshape(-1)).view(plan.inverse_NK.shape)
