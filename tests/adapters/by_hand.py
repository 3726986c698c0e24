"""Sums of experts as the formulas have them, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.adapters.bank import ModuleBank
from crossroads.adapters.contract import Routing
from crossroads.adapters.kernels import mixed


def mix(x_BTI: Tensor, bank: ModuleBank, weights_BTHE: Tensor) -> Tensor:
    """Return sum_e w_e s_e B_e (A_e x), (B, T, O), for dense weights."""
    return mixed(x_BTI, bank, Routing(weights=weights_BTHE, normalised=False))


def merged_delta_OI(bank: ModuleBank, weights_E: Tensor) -> Tensor:
    """Return sum_e w_e s_e B_e A_e, (O, I)."""
    scaled_E = weights_E * bank.scale_E
    return torch.einsum("e,eor,eri->oi", scaled_E.to(bank.a_ERI.dtype), bank.b_EOR, bank.a_ERI)
