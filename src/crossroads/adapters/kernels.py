"""Ways to compute what the experts of a layer add, and the choice among them.

=========  ==========================================================  ==========================
dense      two matrix products over all experts, weights between them  few experts or few rows
grouped    rows sorted by expert, two products per expert that is met  many rows, sparse routing
gather     factors gathered per place: the written-out reference       tests
=========  ==========================================================  ==========================

All give the same numbers up to rounding, and the same gradients; none holds anything of size
(tokens, experts, outputs). Products run in the wider of the types of input and factors. Weights
that hold for a whole call have a kernel of their own, ``crossroads.adapters.static``.

Axes: N rows (tokens), K places, E experts, R rank, I inputs, O outputs, B sequences, T positions,
F = E * R.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from crossroads.adapters.bank import ModuleBank
from crossroads.adapters.contract import Routing
from crossroads.core.dispatch import combine_rows, gather_rows, grouped_linear, plan_rows
from crossroads.core.errors import InputError, unknown_name

Kernel = Literal["auto", "dense", "grouped", "gather"]
KERNELS: tuple[Kernel, ...] = ("auto", "dense", "grouped", "gather")
_HALF = (torch.bfloat16, torch.float16)
# The rule is measured by benchmarks/adapters/kernels.py; docs/adapters/kernels.md has the table.
_SMALL_BANK = 256  # E * R up to which two wide products beat sorting and many narrow ones
_FEW_ROWS = 64  # rows up to which the same holds whatever the bank
_FEW_PER_EXPERT = 8  # rows per expert, in half precision: wide products are cheap there
_HALF_BLOCK = 32  # rows a block is padded to in half precision, where every new size is compiled


def choose(rows: int, places: int, bank: ModuleBank, dtype: torch.dtype) -> Kernel:
    """Return the kernel for sparse routing of ``rows`` tokens with ``places`` experts each."""
    if rows <= _FEW_ROWS or bank.n_experts * bank.rank <= _SMALL_BANK:
        return "dense"
    if dtype in _HALF and rows * places <= _FEW_PER_EXPERT * bank.n_experts:
        return "dense"
    return "grouped"


def mixed(x_BTI: Tensor, bank: ModuleBank, routing: Routing, kernel: Kernel = "auto") -> Tensor:
    """Return sum_e w_e s_e B_e (A_e x), (B, T, O), in the wider type of input and factors.

    Dense routing always takes the dense kernel. Raises InputError for weights by head, UsageError
    for an unknown kernel.
    """
    if kernel not in KERNELS:
        raise unknown_name("kernel", kernel, KERNELS)
    if routing.weights.shape[2] != 1:
        raise InputError(f"mix at {bank.name}: weights by head need mode 'merge_factors'")
    dtype = torch.promote_types(x_BTI.dtype, bank.a_ERI.dtype)
    x_BTI = x_BTI.to(dtype)
    if routing.index is None:
        return dense(x_BTI, bank, routing.weights[:, :, 0])
    if kernel == "auto":
        kernel = choose(x_BTI.shape[:2].numel(), routing.index.shape[-1], bank, dtype)
    if kernel == "dense":
        return dense(x_BTI, bank, routing.dense(bank.n_experts)[:, :, 0])
    shape = (*x_BTI.shape[:2], routing.index.shape[-1])
    index_NK = routing.index[:, :, 0].expand(shape).flatten(0, 1)
    weights_NK = routing.weights[:, :, 0].expand(shape).flatten(0, 1)
    run = grouped if kernel == "grouped" else gathered
    return run(x_BTI.flatten(0, 1), bank, index_NK, weights_NK).unflatten(0, x_BTI.shape[:2])


def dense(x_BTI: Tensor, bank: ModuleBank, weights_BTE: Tensor) -> Tensor:
    """Return the mix by two products over all experts; weights may be broadcast over B and T."""
    n_experts, rank, inputs = bank.a_ERI.shape
    a_FI, b_FO = bank.a_ERI.reshape(-1, inputs), bank.b_EOR.transpose(1, 2).flatten(0, 1)
    scaled_BTE = (weights_BTE * bank.scale_E).to(x_BTI.dtype)
    down_BTER = (x_BTI @ a_FI.to(x_BTI.dtype).T).unflatten(-1, (n_experts, rank))
    return (down_BTER * scaled_BTE[..., None]).flatten(-2) @ b_FO.to(x_BTI.dtype)


def grouped(x_NI: Tensor, bank: ModuleBank, index_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """Return the mix by rows sorted by expert; places of weight 0 that nobody trains cost nothing.

    In half precision blocks are padded, because every new size of a product is compiled.
    """
    scaled_NK = weights_NK * bank.scale_E[index_NK]
    if not scaled_NK.requires_grad:
        index_NK = index_NK.masked_fill(scaled_NK == 0, -1)
    multiple = _HALF_BLOCK if x_NI.dtype in _HALF else 1
    plan = plan_rows(index_NK, bank.n_experts, multiple=multiple)
    down_SR = grouped_linear(gather_rows(x_NI, plan), plan, bank.a_ERI.to(x_NI.dtype))
    up_SO = grouped_linear(down_SR, plan, bank.b_EOR.to(x_NI.dtype))
    return combine_rows(up_SO, scaled_NK, plan)


def gathered(x_NI: Tensor, bank: ModuleBank, index_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """Return the mix by each place's own factors: N * K * R * (I + O) numbers are copied."""
    scaled_NK = (weights_NK * bank.scale_E[index_NK]).to(x_NI.dtype)
    a_NKRI = bank.a_ERI.to(x_NI.dtype)[index_NK]
    b_NKOR = bank.b_EOR.to(x_NI.dtype)[index_NK]
    down_NKR = torch.einsum("nkri,ni->nkr", a_NKRI, x_NI)
    return torch.einsum("nk,nkor,nkr->no", scaled_NK, b_NKOR, down_NKR)
