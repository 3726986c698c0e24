"""What experts add to a layer's output, by the three ways to combine them.

``mix`` and ``merge_delta`` are the same function where weights are constant over tokens;
``merge_factors`` is not, and of degree two in the weights. Shapes as in
``crossroads.adapters.contract``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from crossroads.adapters.bank import LoRA, ModuleBank
from crossroads.adapters.contract import Routing
from crossroads.core.errors import InputError

Weighting = Literal["root", "peft"]


def combine(x_BTI: Tensor, bank: ModuleBank, routing: Routing) -> Tensor:
    """Return what the experts add to the output of ``bank.name``, (B, T, O)."""
    if routing.mode == "merge_factors":
        return _by_factors(x_BTI, bank, routing.dense(bank.n_experts))
    return mix(x_BTI, bank, routing.dense(bank.n_experts))


def mix(x_BTI: Tensor, bank: ModuleBank, weights_BTHE: Tensor) -> Tensor:
    """Return sum_e w_e s_e B_e (A_e x) by two matrix products over all experts."""
    if weights_BTHE.shape[2] != 1:
        raise InputError(f"mix at {bank.name}: weights by head need mode 'merge_factors'")
    n_experts, rank, inputs = bank.a_ERI.shape
    scaled_BTE = weights_BTHE[:, :, 0] * bank.scale_E
    down_BTER = (x_BTI @ bank.a_ERI.reshape(-1, inputs).T).unflatten(-1, (n_experts, rank))
    down_BTER = down_BTER * scaled_BTE[..., None].to(x_BTI.dtype)
    return down_BTER.flatten(-2) @ bank.b_EOR.permute(0, 2, 1).flatten(0, 1)


def merged_delta_OI(bank: ModuleBank, weights_E: Tensor) -> Tensor:
    """Return sum_e w_e s_e B_e A_e, (O, I)."""
    scaled_E = weights_E * bank.scale_E
    return torch.einsum("e,eor,eri->oi", scaled_E.to(bank.a_ERI.dtype), bank.b_EOR, bank.a_ERI)


def merged_factors(bank: ModuleBank, weights_E: Tensor, weighting: Weighting = "root") -> LoRA:
    """Return the average of the factors, a LoRA of the same rank.

    ``root`` puts sqrt(s_e) into both factors where scales differ, and s beside them where they
    agree; ``peft`` is what PEFT's "linear" combination does, sqrt(|w s|) on B and with its sign
    on A, of degree one in the weights.

    Raises InputError where ranks differ. Factors of experts trained apart are known up to a
    rotation each (A -> R A, B -> B R^-1 changes nothing but this average): prefer ``merge_delta``
    for them.
    """
    alive_E = bank.alive_E & (weights_E != 0)
    ranks = bank.rank_E[alive_E]
    if len(ranks) and int(ranks.min()) != int(ranks.max()):
        raise InputError(
            f"merge_factors at {bank.name}: ranks differ ({int(ranks.min())} and "
            f"{int(ranks.max())}); use mode 'merge_delta'"
        )
    scale_E = bank.scale_E
    if weighting == "peft":
        signed_E = weights_E * scale_E
        left_E, right_E, scale = signed_E.abs().sqrt(), signed_E.sign() * signed_E.abs().sqrt(), 1.0
    elif len(scale_E[alive_E].unique()) <= 1:
        left_E = right_E = weights_E
        scale = float(scale_E[alive_E][0]) if bool(alive_E.any()) else 1.0
    else:
        left_E = right_E = weights_E * scale_E.sqrt()
        scale = 1.0
    a_RI = torch.einsum("e,eri->ri", right_E.to(bank.a_ERI.dtype), bank.a_ERI)
    b_OR = torch.einsum("e,eor->or", left_E.to(bank.b_EOR.dtype), bank.b_EOR)
    return LoRA(a_RI=a_RI, b_OR=b_OR, scale=scale)


def _by_factors(x_BTI: Tensor, bank: ModuleBank, weights_BTHE: Tensor) -> Tensor:
    """Average factors per sequence and head, each head for its slices of inputs and outputs."""
    n_experts, rank, inputs = bank.a_ERI.shape
    heads = weights_BTHE.shape[2]
    if heads not in {1, bank.heads}:
        raise InputError(f"merge_factors at {bank.name}: {heads} heads, the bank has {bank.heads}")
    scales = bank.scale_E[bank.alive_E]
    same = bool((scales == scales[0]).all())
    weights_BHE = weights_BTHE[:, 0].to(bank.a_ERI.dtype)
    if not same:
        weights_BHE = weights_BHE * bank.scale_E.sqrt().to(bank.a_ERI.dtype)
    cut_ERHI = bank.a_ERI.reshape(n_experts, rank, heads, inputs // heads)
    cut_EHOR = bank.b_EOR.reshape(n_experts, heads, bank.outputs // heads, rank)
    a_BRI = torch.einsum("bhe,erhi->brhi", weights_BHE, cut_ERHI).flatten(2)
    b_BOR = torch.einsum("bhe,ehor->bhor", weights_BHE, cut_EHOR).flatten(1, 2)
    added_BTO = (x_BTI @ a_BRI.mT) @ b_BOR.mT
    return added_BTO * scales[0] if same else added_BTO
