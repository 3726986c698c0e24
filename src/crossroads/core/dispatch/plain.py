"""The other paths of expert banks: a plain loop, the reference, and grouped matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crossroads.core.dispatch.activations import activate
from crossroads.core.dispatch.weights import Bank
from crossroads.core.errors import InputError


def loop_bank(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank) -> Tensor:
    """Return y_ND, expert by expert, in ordinary differentiable torch: slow, and easy to read."""
    y_ND = x_ND.new_zeros(x_ND.shape[0], bank.second_EDF.shape[1])
    for expert in range(bank.first_EGD.shape[0]):
        token_R, place_R = torch.where(idx_NK == expert)
        if not len(token_R):
            continue
        first_bias, second_bias = (
            None if bias is None else bias[expert]
            for bias in (bank.first_bias_EG, bank.second_bias_ED)
        )
        a_RG = functional.linear(x_ND[token_R], bank.first_EGD[expert], first_bias)
        y_RD = functional.linear(activate(bank.kind, a_RG), bank.second_EDF[expert], second_bias)
        weight_R = w_NK[token_R, place_R].to(y_RD.dtype)
        y_ND = y_ND.index_add(0, token_R, y_RD * weight_R[:, None])
    return y_ND


def grouped_bank(x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor, bank: Bank) -> Tensor:
    """Return y_ND by ``torch.nn.functional.grouped_mm``: no host synchronisation, made for GPUs.

    Raises InputError where a row is not a multiple of 16 bytes, which grouped_mm asks for.
    """
    for name, size in (("width", x_ND.shape[1]), ("hidden width", bank.second_EDF.shape[2])):
        if not is_grouped_size(size, x_ND):
            raise InputError(
                f"{name} {size} in {x_ND.dtype} is not a multiple of 16 bytes, which path "
                "'grouped_mm' needs; use path 'fused' or 'auto'"
            )
    n_tokens, places = idx_NK.shape
    n_experts = bank.first_EGD.shape[0]
    key_P = idx_NK.reshape(-1)
    key_P = torch.where(key_P < 0, n_experts, key_P)  # empty places last
    expert_P, order_P = torch.sort(key_P, stable=True)
    marks = torch.arange(n_experts, device=idx_NK.device)
    ends_E = torch.searchsorted(expert_P, marks, right=True).to(torch.int32)
    token_P = order_P // places
    a_PG = _grouped_linear(x_ND[token_P], bank.first_EGD, bank.first_bias_EG, ends_E, expert_P)
    h_PF = activate(bank.kind, a_PG)
    y_PD = _grouped_linear(h_PF, bank.second_EDF, bank.second_bias_ED, ends_E, expert_P)
    weight_P = w_NK.reshape(-1)[order_P].to(y_PD.dtype)
    y_PD = y_PD * weight_P.masked_fill(expert_P == n_experts, 0)[:, None]
    return y_PD.new_zeros(n_tokens, y_PD.shape[1]).index_add(0, token_P, y_PD)


def is_grouped_size(size: int, like: Tensor) -> bool:
    """Say whether rows of ``size`` elements satisfy grouped_mm, which loads 16 bytes at a time."""
    return size * like.element_size() % 16 == 0


class _Dense(torch.autograd.Function):
    """The identity, with a contiguous gradient: grouped_mm refuses an expanded one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


def _grouped_linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, ends_E: Tensor, expert_P: Tensor
) -> Tensor:
    # Rows past the last end are left unwritten, forward and backward: both are set to 0.
    is_real = (expert_P < weight.shape[0])[:, None]
    rows = torch.where(is_real, rows, 0)
    product: Tensor = _Dense.apply(
        functional.grouped_mm(rows, weight.contiguous().transpose(1, 2), offs=ends_E)
    )
    out = torch.where(is_real, product, 0)
    return out if bias is None else out + bias[expert_P.clamp(max=weight.shape[0] - 1)]
